"""Figures for people, as a Markdown table, and for programs, as JSON."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(cells, widths)))
        return "| " + " | ".join([first, *others]) + " |"

    print(line(header))
    print("|" + "|".join("-" * (width + 1) + ("-" if column == 0 else ":") for column, width in enumerate(widths)) + "|")
    for row in rows:
        print(line(row))


def write_json(folder: Path, name: str, figures: dict) -> None:
    """Writes `name`.json with all figures, and the machine's number of processors."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"processors": os.cpu_count()} | figures, indent=1, default=dataclasses.asdict) + "\n")
    print(f"all figures: {path}")
