"""Tables that are looked up: a model whose table has 8 GB under a memory limit of 1 GB, beside llama.cpp's lazy mapping and all in memory.

In one run, kinds in turn, page cache dropped before each: stock llama.cpp with `--lazy-mode on` and ours (no flag, no variable) under the same
memory cgroup, and stock with everything in memory, which has no limit. Lazy and ours then run on a drive as fast as memory as well (a loop
device with direct I/O over a file in memory) where there is enough of it. The model is the tiny qwen4exp with more rows: a token looks
up eight, of 34 bytes each, all over the table, so each costs a read of 4 KiB. Beside them stand fio's random reads of 4 KiB at our depth.

The model is made in build/bench-rows and removed afterwards. SCALE=small takes a table of 1 GB and a limit of 512 MB.
"""

import argparse
import json
import random
import shutil
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from fast_drive import fast_drive
from made_models import GENERATORS
from memory import limited
from runs import Kind, Run, drop_caches, median, require_equal_texts, run_once, shown
from table import number, percent, print_table, write_json
from workplace import ROOT, SERVER, is_small, options

LAZY, OURS, RESIDENT = "llama.cpp, lazy", "llama.cpp with libhypura", "all in memory"
FOLDER = ROOT / "build/bench-rows"
# As many as libhypura has in flight, and of the size that it reads.
DEPTH, READ_BYTES = 128, 4096
FIO_SECONDS = 5
# A prompt is read in graphs of this many tokens in all kinds.
FLAGS = ("-c", "4096", "-b", "2048", "-ub", "512")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate (default 32)")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prompt (default 2048)")
    parser.add_argument("--width", type=int, default=256, help="values of a token between layers (default 256): what computing costs")
    parser.add_argument("--keep", action="store_true", help="leave the model in build/bench-rows")


def made_model(table_bytes: int, width: int) -> Path:
    model = FOLDER / f"table-{table_bytes >> 20}-{width}.gguf"
    if not model.exists():
        print(f"making {model} ({table_bytes / 1e9:.1f} GB) ...", file=sys.stderr)
        command = [sys.executable, GENERATORS / "make_table.py", model, "--bytes", str(table_bytes), "--width", str(width)]
        subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    return model


def prompt_of(token_count: int) -> str:
    """Text of so many tokens, which are letters and digits to this model, in random order: hardly any three of them come twice."""
    return "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=token_count))


def reads_per_second(file: Path) -> float:
    """What fio reads in pieces of 4 KiB at random places."""
    command = ["fio", f"--filename={file}", "--name=rows", "--rw=randread", "--readonly", "--direct=1", "--ioengine=io_uring"]
    command += [f"--bs={READ_BYTES}", f"--iodepth={DEPTH}", "--norandommap", "--randrepeat=0", "--time_based", f"--runtime={FIO_SECONDS}"]
    report = subprocess.run([*command, "--output-format=json"], check=True, capture_output=True, text=True).stdout
    return json.loads(report[report.index("{") :])["jobs"][0]["read"]["iops"]


def on_drive(name: str, model: Path, kinds: list[Kind], rounds: int) -> dict:
    """Runs of every kind on one drive, and fio's reads before and after ours."""
    runs: dict[str, list[Run]] = {kind.name: [] for kind in kinds}
    fio: list[float] = []
    for _ in range(rounds):
        for kind in kinds:
            if kind.name == OURS:
                fio.append(reads_per_second(model))
            run = run_once(replace(kind, model=model))
            if kind.name == OURS:
                fio.append(reads_per_second(model))
            runs[kind.name].append(run)
            failure = run.failure and run.failure.splitlines()[0]
            print(f"{name}, {kind.name}: {failure or f'{shown(run.prompt_speed)} and {shown(run.speed)} tokens per second'}", file=sys.stderr, flush=True)
    for run in runs[OURS]:
        if run.failure or not run.stats.get("row_reads"):
            raise SystemExit(f"{OURS} looked nothing up: {run.failure or run.stats}")
    require_equal_texts(runs)
    return {"runs": runs, "fio": fio}


def reads_reached(run: Run) -> float | None:
    """Reads of rows per second while any read was in flight, until the prompt was read: a generated token wants too few to fill a drive."""
    seconds = run.stats["read_seconds"] - run.decode_stats["read_seconds"]
    return (run.stats["row_reads"] - run.decode_stats["row_reads"]) / seconds if seconds else None


def times(one: float | None, other: float | None) -> str:
    return number(one / other if one and other else None, 2)


def print_drive(name: str, figures: dict, resident: list[Run]) -> None:
    runs, fio = figures["runs"], median(figures["fio"])
    kinds = {**runs, RESIDENT: resident}
    prompt = {kind: median(run.prompt_speed for run in some) for kind, some in kinds.items()}
    decode = {kind: median(run.speed for run in some) for kind, some in kinds.items()}
    reached = median(map(reads_reached, runs[OURS]))
    waits = median(run.per_token("row_stall_seconds") for run in runs[OURS])
    reads = median(run.per_token("row_reads") for run in runs[OURS])
    rows = [
        *([f"{kind}, cold prompt, tokens per second", number(speed, 1)] for kind, speed in prompt.items()),
        ["ours, times lazy", times(prompt[OURS], prompt[LAZY])],
        ["ours, times all in memory", times(prompt[OURS], prompt[RESIDENT])],
        *([f"{kind}, generated tokens per second", number(speed, 1)] for kind, speed in decode.items()),
        ["ours, of the prompt's seconds", number(median(run.prompt_seconds for run in runs[OURS]))],
        ["  waited for rows", number(median(run.stats["row_stall_seconds"] - run.decode_stats["row_stall_seconds"] for run in runs[OURS]))],
        ["  for so many reads", number(median(run.stats["row_reads"] - run.decode_stats["row_reads"] for run in runs[OURS]), 0)],
        ["reads per second while reading", number(reached, 0)],
        ["fio's, same size and depth", number(fio, 0)],
        ["  share", percent(reached / fio if reached and fio else None)],
        ["a generated token waits for rows, ms", number(waits * 1e3 if waits is not None else None, 2)],
        ["  for so many reads", number(reads, 1)],
        ["memory for the table, MB", number(median(run.stats["budget_bytes"] / 1e6 for run in runs[OURS]), 0)],
    ]
    print(f"\n{name}, medians of {len(runs[OURS])}\n")
    print_table(["", ""], rows)


def main() -> None:
    arguments = options(__doc__, add_options)
    if not shutil.which("fio"):
        raise SystemExit("fio is missing; on Debian: apt install fio")
    table_bytes, limit_bytes = (1 << 30, 512 << 20) if is_small() else (8 << 30, 1 << 30)
    model = made_model(table_bytes, arguments.width)
    prompts = [prompt_of(arguments.prompt)]
    figures = {}
    try:
        with limited(limit_bytes) as through:
            off = {"HYPURA": "off"}
            lazy = Kind(LAZY, model, off, prompts, arguments.tokens, through, (*FLAGS, "--lazy-mode", "on"))
            ours = Kind(OURS, model, {}, prompts, arguments.tokens, through, FLAGS)
            resident = Kind(RESIDENT, model, off, prompts, arguments.tokens, (), (*FLAGS, "--lazy-mode", "off", "--load-mode", "none"))
            figures["the machine's own drive"] = on_drive("own drive", model, [lazy, ours, resident], arguments.rounds)
            drop_caches()
            with fast_drive(model, spare_bytes=limit_bytes) as fast:
                if fast:
                    figures["a drive as fast as memory"] = on_drive("fast drive", fast, [lazy, ours], arguments.rounds)
    finally:
        if not arguments.keep:
            shutil.rmtree(FOLDER)
    print(f"a table of {table_bytes / 1e9:.1f} GB under {limit_bytes / 1e9:.1f} GB, {SERVER.name}")
    resident_runs = figures["the machine's own drive"]["runs"][RESIDENT]
    for name, of_drive in figures.items():
        print_drive(name, of_drive, resident_runs)
    write_json(arguments.output, "rows", {"table_bytes": table_bytes, "limit_bytes": limit_bytes, "drives": figures})


if __name__ == "__main__":
    main()
