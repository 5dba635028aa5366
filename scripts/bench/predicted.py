"""Predicted beside measured speed: what the library says when it starts, and what generation then does.

For every model and every budget, in a cache directory of its own that is empty at first: a first run, which knows nothing, and further runs,
which know what those before them measured. The budget is what streamed weights may occupy, as a share of the file.

Columns: the tokens per second that were predicted and that came; how far the prediction was off; of a token, the seconds of computing,
of waiting and of a busy drive, each predicted and measured; bytes read for a token, likewise; what was said to be the limit.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from runs import Kind, Run, run_once
from stolen import undisturbed
from table import number, print_table, write_json
from workplace import options, prompts

COLUMNS = ["", "predicted t/s", "measured t/s", "off by", "computing ms", "waiting ms", "drive ms", "read MB", "limit"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=2)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="GGUF files")
    parser.add_argument("--budgets", type=int, nargs="+", default=[25, 40, 60], metavar="PERCENT", help="of the file (default 25 40 60)")
    parser.add_argument("--prompts", type=int, default=2, help="how many of prompts.txt (default 2)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens to generate for each prompt (default 96)")


def runs_of(model: Path, percent: int, arguments: argparse.Namespace) -> list[Run]:
    """Runs one after the other, each knowing the ones before; all again when one of them was disturbed."""

    def measure() -> tuple[list[Run], float]:
        runs = runs_in_new_cache(model, percent, arguments)
        return runs, max(run.stolen for run in runs)

    return undisturbed(measure)


def runs_in_new_cache(model: Path, percent: int, arguments: argparse.Namespace) -> list[Run]:
    with tempfile.TemporaryDirectory(prefix="hypura-predicted-") as cache:
        budget_kibibytes = model.stat().st_size * percent // 100 >> 10
        settings = {"HYPURA": "stream", "HYPURA_RAM": f"{budget_kibibytes}K", "XDG_CACHE_HOME": cache}
        kind = Kind(f"{percent}%", model, settings, prompts(arguments.prompts), arguments.tokens)
        return [run_once(kind) for _ in range(arguments.rounds)]


def off_by(run: Run) -> float | None:
    """By how much more was predicted than came, as a share of what came."""
    predicted = run.stats.get("predicted_tokens_per_second")
    return predicted / run.speed - 1 if predicted and run.speed else None


def both(predicted: float | None, measured: float | None, digits: int = 1) -> str:
    return f"{number(predicted, digits)} / {number(measured, digits)}"


def table_row(name: str, run: Run) -> list[str]:
    if run.failure:
        return [f"{name}: {run.failure.splitlines()[0]}", *[""] * (len(COLUMNS) - 1)]
    prediction = run.stats["plan"]["prediction"]

    def milliseconds(value: float | None) -> float | None:
        return None if value is None else 1e3 * value

    stalled = run.per_token("stall_seconds")
    computed = 1 / run.speed - stalled if run.speed and stalled is not None else None
    read_bytes = run.per_token("read_bytes")
    off = off_by(run)
    return [
        name,
        number(run.stats["predicted_tokens_per_second"]),
        number(run.speed),
        "" if off is None else f"{off:+.0%}",
        both(milliseconds(prediction["compute_seconds"]), milliseconds(computed)),
        both(milliseconds(prediction["stall_seconds"]), milliseconds(stalled)),
        both(milliseconds(prediction["drive_seconds"]), milliseconds(run.per_token("read_seconds"))),
        both(prediction["read_bytes"] / 1e6, read_bytes / 1e6 if read_bytes is not None else None),
        prediction["limit"],
    ]


def main() -> None:
    arguments = options(__doc__, add_options)
    missing = [str(model) for model in arguments.models if not model.exists()]
    if missing:
        sys.exit(f"there is no {' or '.join(missing)}")
    results = {}
    for model in arguments.models:
        results[model.name] = {percent: runs_of(model, percent, arguments) for percent in arguments.budgets}
        print(f"\n{model.name}: {model.stat().st_size / 1e9:.1f} GB; predicted / measured\n")
        runs = ((percent, index, run) for percent, some in results[model.name].items() for index, run in enumerate(some, 1))
        print_table(COLUMNS, [table_row(f"{percent}%, run {index}", run) for percent, index, run in runs])
    write_json(arguments.output, "predicted", results)


if __name__ == "__main__":
    main()
