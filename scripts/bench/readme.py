"""The table of the README: one mixture of experts of 8 GB, resident, and under a memory limit with and without libhypura.

The model is the trained one of the tests, its experts widened without a change of their function. The runs are taken in
turn, page cache dropped before each, and medians printed; the texts must be equal.
"""

import argparse
import os

from made_models import wide_moe
from memory import limited
from runs import Kind, in_rounds, median, require_equal_texts
from table import number, print_table, write_json
from workplace import options

PROMPT = "The standard library function that opens a file is"
TOKENS = 64
# Streamed by page faults the model is slow: fewer tokens tell as much.
MMAP_TOKENS = 12


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit-gib", type=float, default=3.0, help="memory limit in GiB (default 3)")


def main() -> None:
    arguments = options(__doc__, add_options)
    model = wide_moe()
    with limited(int(arguments.limit_gib * (1 << 30))) as through:
        kinds = [
            Kind("llama.cpp, mmap", model, {"HYPURA": "off"}, [PROMPT], MMAP_TOKENS, through),
            Kind("llama.cpp with libhypura", model, {}, [PROMPT], TOKENS, through),
            Kind("llama.cpp, all in memory", model, {"HYPURA": "off"}, [PROMPT], TOKENS),
        ]
        runs = in_rounds(kinds, arguments.rounds)
    require_equal_texts(runs)
    print(f"{model.name}, {arguments.limit_gib:g} GiB unless all in memory, {os.cpu_count()} cores, medians of {arguments.rounds}\n")
    rows = []
    for name, some in runs.items():
        speeds = [run.speed for run in some if run.speed]
        spread = f"{min(speeds):.2f} to {max(speeds):.2f}" if speeds else some[0].failure or ""
        rows.append([name, number(median(speeds)), spread])
    print_table(["", "tokens per second", "spread"], rows)
    write_json(arguments.output, "readme", {"model": model.name, "limit_gib": arguments.limit_gib, "runs": runs})


if __name__ == "__main__":
    main()
