"""Predicted beside measured speed: what the library says when it starts, and what generation then does.

For every model and every budget, in a cache directory of its own that is empty at first: a first run, which knows nothing, and further runs,
which know what those before them measured. The budget is what streamed weights may occupy, as a share of the file. All of that is repeated,
budgets in turn, and medians are printed: a drive that others use too is a fifth slower or faster in the next minute.

Columns: the tokens per second that were predicted and that came; how far predictions were off, with the least and the most; of a token, the
seconds of computing, of waiting and of a busy drive, each predicted and measured; bytes read for a token, likewise; what was said to be the limit.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from runs import Kind, Run, median, run_once, speed
from stolen import undisturbed
from table import number, print_table, write_json
from workplace import options, prompts

COLUMNS = ["", "predicted t/s", "measured t/s", "off by", "computing ms", "waiting ms", "drive ms", "read MB", "limit"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=2)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="GGUF files")
    parser.add_argument("--budgets", type=int, nargs="+", default=[25, 40, 60], metavar="PERCENT", help="of the file (default 25 40 60)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="how often, with an empty cache directory each time (default 3)")
    parser.add_argument("--prompts", type=int, default=2, help="how many of prompts.txt (default 2)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens to generate for each prompt (default 96); from fewer than 26 a run learns nothing")


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


def off_by_all(runs: list[Run]) -> str:
    offs = sorted(off for run in runs if (off := off_by(run)) is not None)
    if not offs:
        return ""
    return f"{median(offs):+.0%}" + (f" ({offs[0]:+.0%} to {offs[-1]:+.0%})" if len(offs) > 1 else "")


def table_row(name: str, runs: list[Run]) -> list[str]:
    """One run of every repeat."""
    failures = [run.failure for run in runs if run.failure]
    # No plan where nothing is streamed.
    runs = [run for run in runs if not run.failure and run.stats.get("plan")]
    if not runs:
        reason = failures[0].splitlines()[0] if failures else "nothing was streamed"
        return [f"{name}: {reason}", *[""] * (len(COLUMNS) - 1)]
    if failures:
        name += f" ({len(failures)} failed)"

    def both(predicted: str, measured: Callable[[Run], float | None], unit: float = 1e-3) -> str:
        figures = median(run.stats["plan"]["prediction"][predicted] for run in runs), median(map(measured, runs))
        return " / ".join(number(None if figure is None else figure / unit, 1) for figure in figures)

    return [
        name,
        number(median(run.stats["predicted_tokens_per_second"] for run in runs)),
        number(speed(runs)),
        off_by_all(runs),
        both("compute_seconds", computing_seconds),
        both("stall_seconds", lambda run: run.per_token("stall_seconds")),
        both("drive_seconds", lambda run: run.per_token("read_seconds")),
        both("read_bytes", lambda run: run.per_token("read_bytes"), 1e6),
        runs[-1].stats["plan"]["prediction"]["limit"],
    ]


def computing_seconds(run: Run) -> float | None:
    stalled = run.per_token("stall_seconds")
    return 1 / run.speed - stalled if run.speed and stalled is not None else None


def main() -> None:
    arguments = options(__doc__, add_options)
    if arguments.repeats < 1:
        sys.exit("--repeats is 1 or more")
    missing = [str(model) for model in arguments.models if not model.exists()]
    if missing:
        sys.exit(f"there is no {' or '.join(missing)}")
    results = {}
    for model in arguments.models:
        repeats = [{percent: runs_of(model, percent, arguments) for percent in arguments.budgets} for _ in range(arguments.repeats)]
        results[model.name] = repeats
        print(f"\n{model.name}: {model.stat().st_size / 1e9:.1f} GB; predicted / measured, medians of {arguments.repeats}\n")
        rows = ((percent, index) for percent in arguments.budgets for index in range(arguments.rounds))
        print_table(COLUMNS, [table_row(f"{percent}%, run {index + 1}", [repeat[percent][index] for repeat in repeats]) for percent, index in rows])
    write_json(arguments.output, "predicted", results)


if __name__ == "__main__":
    main()
