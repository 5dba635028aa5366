"""What libhypura costs a model that fits: llama-bench of the build with it and of one without, in turn, nothing set.

The build without is of the same sources with the option off (`make llama-off`), which the patch leaves as stock. What else the machine does
can only make a run slower, so the fastest runs are compared beside the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from stolen import ProcessorTime, undisturbed
from table import number, print_table, write_json
from workplace import ROOT, SMOLLM2, options

BUILDS = {"stock": "llama-off", "with libhypura": "llama"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="a GGUF that fits in memory (default SmolLM2)")


def speeds(build: str, model: Path) -> tuple[dict[str, float], float]:
    """Tokens per second of a prompt of 128 tokens and of 64 generated ones, as llama-bench measures them, and the share of the processors'
    time that was stolen meanwhile."""
    program = ROOT / "build" / build / "bin/llama-bench"
    command = [program, "-m", model, "-p", "128", "-n", "64", "-r", "1", "-t", "2", "-o", "json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HYPURA")}
    time = ProcessorTime()
    answer = subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True, text=True).stdout
    return {"prompt" if test["n_prompt"] else "decode": test["avg_ts"] for test in json.loads(answer)}, time.stolen()


def main() -> None:
    arguments = options(__doc__, add_options)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in BUILDS}
    for number_of_round in range(arguments.rounds):
        # Who comes first changes: a machine that warms up or slows down favours neither.
        for name in list(BUILDS)[:: 1 if number_of_round % 2 else -1]:
            runs[name].append(undisturbed(lambda: speeds(BUILDS[name], arguments.model)))
            print(f"{name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    rows = []
    for test in ("prompt", "decode"):
        for name, figure in (("median", statistics.median), ("fastest", max)):
            stock, ours = (figure(run[test] for run in some) for some in runs.values())
            rows.append([f"{test}, {name}", number(stock, 1), number(ours, 1), f"{ours / stock - 1:+.1%}"])
    print(f"{arguments.model.name}, {arguments.rounds} runs each\n")
    print_table(["tokens per second", *BUILDS, "difference"], rows)
    write_json(arguments.output, "resident", {"model": arguments.model.name, "runs": runs})


if __name__ == "__main__":
    main()
