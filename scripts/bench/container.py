"""A model that others hold in the page cache, in a container that is smaller: all of it, half of it, none of it.

The pages belong to whoever read the file, not to the container: here to this program, outside of the memory cgroup. Beside each other in one
run: llama.cpp's mapping, which uses them where they are; libhypura, which copies them; and libhypura with HYPURA_DIRECT=cold, which reads the drive.
"""

import argparse

from memory import limited
from runs import Kind, in_rounds, median, require_equal_texts
from table import number, percent, print_table, write_json
from workplace import ROOT, options, prompts

MODEL = ROOT / "build/models/smollm2-moe.gguf"
MMAP, OURS, COLD = "llama.cpp, mmap", "llama.cpp with libhypura", "the same, HYPURA_DIRECT=cold"
SHARES = (1.0, 0.5, 0.0)
# The processors are to be had for copying while one thread waits for another.
SETTINGS = {"OMP_WAIT_POLICY": "passive"}
FLAGS = ("-c", "512", "--no-repack")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit-mib", type=int, default=300, help="memory limit in MiB (default 300, of a model of 427)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate (default 64)")


def kinds(share: float, tokens: int, through: tuple[str, ...]) -> list[Kind]:
    settings = {MMAP: {"HYPURA": "off"}, OURS: {}, COLD: {"HYPURA_DIRECT": "cold"}}
    return [Kind(name, MODEL, SETTINGS | more, prompts(1), tokens, through, FLAGS, cached_share=share) for name, more in settings.items()]


def main() -> None:
    arguments = options(__doc__, add_options)
    rows, figures = [], {}
    for share in SHARES:
        with limited(arguments.limit_mib << 20) as through:
            runs = in_rounds(kinds(share, arguments.tokens, through), arguments.rounds)
        require_equal_texts(runs)
        figures[f"{share:.0%}"] = runs
        speeds = {name: median(run.speed for run in some) for name, some in runs.items()}
        for name, some in runs.items():
            copied = median(run.stats["page_cache_bytes"] / run.stats["read_bytes"] for run in some) if name != MMAP else None
            waited = median(run.per_token("stall_seconds") for run in some) if name != MMAP else None
            times = speeds[name] / speeds[MMAP] if speeds[name] and speeds[MMAP] else None
            rows.append([f"{share:.0%}", name, number(speeds[name], 1), number(times, 2), percent(copied), number(waited and waited * 1e3, 1)])
    print(f"{MODEL.name} under {arguments.limit_mib} MiB, medians of {arguments.rounds}\n")
    print_table(["in the page cache", "", "tokens per second", "times mmap", "of what was read, copied", "waits a token, ms"], rows)
    write_json(arguments.output, "page-cache", {"limit_mib": arguments.limit_mib, "shares": figures})


if __name__ == "__main__":
    main()
