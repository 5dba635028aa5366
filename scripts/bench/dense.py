"""Dense streaming beside its physical limit: a model in the shape of Llama 70B (Q4_K_M, 42 GB) under a memory limit of half the file.

In one run, kinds in turn, page cache dropped before each: stock llama.cpp by mmap and ours (no flag, no variable) under the same memory
cgroup, the drive's speed, and the time of computing alone. That is measured on files of few layers of the same shape that fit in memory:
the difference of two layer counts is the time of so many bytes of weights. The roofline of a token is the longer of computing it and of
reading what was streamed for it, which is the growth of `read_bytes` between two snapshots of one run's statistics, before and after the
generated tokens, divided by the tokens computed between them.

SCALE=small takes 10 layers instead of 80 (5.7 GB). The files are made once, in ~/.cache/hypura/bench.
"""

import argparse
from pathlib import Path

from made_models import shaped
from memory import limited
from roofline import Roofline, extrapolated_seconds, fits_in_memory
from runs import Kind, Run, drive_speeds, in_rounds, median, per_token, reached, require_equal_texts, speed
from table import gigabytes, number, percent, print_table, write_json
from workplace import is_small, options, prompts

SHAPE = "llama-70b"
FEW_LAYERS = 2
# The second layer count of the measurement of computing: the first of these that fits in memory.
MORE_LAYERS = (10, 4)
MMAP, OURS = "llama.cpp, mmap", "llama.cpp with libhypura"
MMAP_TOKENS = 4


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--share", type=float, default=0.5, help="memory limit as a share of the file (default 0.5)")
    parser.add_argument("--tokens", type=int, default=24, help="tokens to generate (default 24)")
    parser.add_argument("--mmap-seconds", type=float, default=None, help="time that a stock run may take (default 180 small, 900 full)")


def resident_kinds(prompt: str, tokens: int) -> list[Kind]:
    few = shaped(SHAPE, FEW_LAYERS)
    layers = next((layers for layers in MORE_LAYERS if fits_in_memory(few, layers / FEW_LAYERS)), None)
    if layers is None:
        raise SystemExit(f"{MORE_LAYERS[-1]} layers of {SHAPE} do not fit in the memory that is available: computing cannot be measured")
    return [Kind(model.stem, model, {"HYPURA": "off"}, [prompt], tokens) for model in (few, shaped(SHAPE, layers))]


def roofline(run: Run, compute_seconds: float) -> Roofline:
    """That of one run, with the drive as it was before and after it."""
    return Roofline.of(compute_seconds, run.per_token("read_bytes"), run.drive_bytes_per_second)


def print_report(model: Path, limit_bytes: int, runs: dict[str, list[Run]], resident: list[Kind]) -> dict:
    few, more = ((kind.model, 1 / speed(runs[kind.name])) for kind in resident)
    compute_seconds = extrapolated_seconds(few, more, model)
    rooflines = [roofline(run, compute_seconds) for run in runs[OURS]]
    drives = drive_speeds(runs[OURS])
    ours, stock = speed(runs[OURS]), speed(runs[MMAP])
    share = median(roof.share(run.speed) for roof, run in zip(rooflines, runs[OURS]))

    rows = [
        ["llama.cpp, mmap, tokens per second", number(stock, 3) or runs[MMAP][0].failure or "too few tokens"],
        ["llama.cpp with libhypura, tokens per second", number(ours, 3)],
        ["  times mmap", number(ours / stock if stock else None, 1)],
        ["drive before and after, into memory, GB/s", gigabytes(median(drive.own for drive in drives))],
        ["drive before and after, fio, GB/s", gigabytes(median(drive.fio for drive in drives)) or "not installed"],
        ["drive speed reached while reading, GB/s", gigabytes(median(map(reached, runs[OURS])))],
        ["streamed per token, GB", gigabytes(per_token(runs[OURS], "read_bytes"))],
        ["waited for the drive per token, s", number(per_token(runs[OURS], "stall_seconds"), 3)],
        ["computing per token when resident, s", number(compute_seconds, 3)],
        ["reading per token at the drive's speed, s", number(median(roof.read_seconds for roof in rooflines), 3)],
        ["roofline, tokens per second", number(median(1 / roof.seconds for roof in rooflines), 3)],
        ["  set by", " or ".join(sorted({roof.limit for roof in rooflines}))],
        ["ours, share of the roofline", percent(share)],
    ]
    print(f"{model.name}: {model.stat().st_size / 1e9:.1f} GB, memory limit {limit_bytes / 1e9:.1f} GB, medians of {len(runs[OURS])}\n")
    print_table(["", ""], rows)
    return {"compute_seconds": compute_seconds, "rooflines": rooflines, "share": share}


def main() -> None:
    arguments = options(__doc__, add_options)
    model = shaped(SHAPE, 10 if is_small() else 80)
    (prompt,) = prompts(1)
    prompt = prompt[:200]
    limit_bytes = int(model.stat().st_size * arguments.share)
    resident = resident_kinds(prompt, arguments.tokens)
    mmap_seconds = arguments.mmap_seconds or (180 if is_small() else 900)
    with limited(limit_bytes) as through:
        kinds = [
            Kind(MMAP, model, {"HYPURA": "off"}, [prompt], MMAP_TOKENS, through, ("--no-warmup",), mmap_seconds),
            Kind(OURS, model, {}, [prompt], arguments.tokens, through, beside_drive=True),
            *resident,
        ]
        runs = in_rounds(kinds, arguments.rounds)
    for run in runs[OURS]:
        if run.failure or not run.decode_stats.get("read_bytes"):
            raise SystemExit(f"{OURS} streamed nothing: {run.failure or run.stats}")
    require_equal_texts({kind.name: runs[kind.name] for kind in kinds if kind.model == model})
    summary = print_report(model, limit_bytes, runs, resident)
    write_json(arguments.output, "dense", {"model": model.name, "limit_bytes": limit_bytes, "runs": runs} | summary)


if __name__ == "__main__":
    main()
