"""What libhypura costs a model that fits: llama-bench of the build with it and of one without, in turn, nothing set.

The build without is of the same sources with the option off (`make llama-off`), which the patch leaves as stock. On a shared machine two runs
of one program differ by a tenth, and a slow minute may fall on more runs of one than of the other. So the runs are short and many, and beside the
medians the middle one of the differences within a round is given, with the interval that holds it in 95 of 100 draws of the rounds.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

from stolen import ProcessorTime, undisturbed
from table import number, print_table, write_json
from workplace import ROOT, SMOLLM2, options

BUILDS = {"stock": "llama-off", "with libhypura": "llama"}
DRAWS = 2000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=101)
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="a GGUF that fits in memory (default SmolLM2)")


def speeds(build: str, model: Path) -> tuple[dict[str, float], float]:
    """Tokens per second of a prompt of 64 tokens and of 32 generated ones, as llama-bench measures them, and the share of the processors'
    time that was stolen meanwhile."""
    program = ROOT / "build" / build / "bin/llama-bench"
    command = [program, "-m", model, "-p", "64", "-n", "32", "-r", "1", "-t", "2", "-o", "json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HYPURA")}
    time = ProcessorTime()
    answer = subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True, text=True).stdout
    return {"prompt" if test["n_prompt"] else "decode": test["avg_ts"] for test in json.loads(answer)}, time.stolen()


def interval(differences: list[float]) -> tuple[float, float]:
    """Where the median of other rounds like these would lie, 95 times of 100."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(differences, k=len(differences))) for _ in range(DRAWS))
    return medians[DRAWS // 40], medians[-1 - DRAWS // 40]


def main() -> None:
    arguments = options(__doc__, add_options)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in BUILDS}
    for number_of_round in range(arguments.rounds):
        # Who comes first changes: a machine that warms up or slows down favours neither.
        for name in list(BUILDS)[:: 1 if number_of_round % 2 else -1]:
            runs[name].append(undisturbed(lambda name=name: speeds(BUILDS[name], arguments.model)))
            print(f"{name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    rows = []
    for test in ("prompt", "decode"):
        stock, ours = ([run[test] for run in some] for some in runs.values())
        differences = [our / its - 1 for its, our in zip(stock, ours)]
        middle, (low, high) = statistics.median(differences), interval(differences)
        medians = statistics.median(stock), statistics.median(ours)
        rows.append([test, *(number(speed, 1) for speed in medians), f"{medians[1] / medians[0] - 1:+.1%}", f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"])
    print(f"{arguments.model.name}, {arguments.rounds} runs each\n")
    print_table(["tokens per second, medians", *BUILDS, "difference", "within rounds"], rows)
    write_json(arguments.output, "resident", {"model": arguments.model.name, "runs": runs})


if __name__ == "__main__":
    main()
