"""How long a small process is held up at worst beside a model in the same memory limit: alone, beside libhypura, beside llama.cpp's mapping.

The neighbour looks at memory that it holds, takes some anew and gives it back, and reads a small file, every few milliseconds; how long that
takes is its delay. The model needs more than the limit has. The kinds take turns, so that a busy machine is busy for all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import workplace

from memory import limited
from models import SMOLLM2_MOE
from server import Server
from table import print_table, write_json

ALONE, OURS, MMAP = "alone", "llama.cpp with libhypura", "llama.cpp, mmap"
BODY = {"prompt": "The capital of Norway is", "n_predict": 32}
ARGUMENTS = ["-np", "1", "-c", "512", "-b", "64", "-ub", "64", "-t", "1", "--no-repack"]

# Prints the seconds of each delay until its input ends: a process of its own, in the limit.
NEIGHBOUR = """
import json, mmap, os, select, sys, time
PAGE = 4096
def touch(memory):
    for start in range(0, len(memory), PAGE):
        memory[start] = 1
held, delays = bytearray(32 << 20), []
with open(sys.argv[1], "rb") as file:
    touch(held)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        began = time.monotonic()
        touch(held)
        with mmap.mmap(-1, 1 << 20) as taken:
            touch(taken)
        os.pread(file.fileno(), 64 << 10, 0)
        delays.append(time.monotonic() - began)
print(json.dumps(delays))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--room-mib", type=int, default=250, help="of the limit beside what stays in memory (default 250, of 380 that are streamed)")
    parser.add_argument("--seconds", type=float, default=10, help="of each run (default 10)")


def forget(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def delays(kind: str, room_mib: int, seconds: float, scratch: Path) -> list[float]:
    """Of one run, in the order in which they came."""
    small = scratch / "small"
    small.write_bytes(bytes(64 << 10))
    # Pages that somebody else has read would cost the mapping nothing.
    forget(SMOLLM2_MOE.path)
    settings = {"HYPURA": "off"} if kind == MMAP else {"HYPURA": "stream"}
    with limited(SMOLLM2_MOE.other_bytes + (room_mib << 20)) as through:
        server = Server(SMOLLM2_MOE.path, settings, scratch, *ARGUMENTS, through=through)
        with nullcontext() if kind == ALONE else server:
            command = [*through, sys.executable, "-c", NEIGHBOUR, str(small)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as neighbour:
                neighbour.stdout.readline()
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    time.sleep(0.1) if kind == ALONE else server.text("/completion", BODY)
                return json.loads(neighbour.communicate(b"\n")[0])


def main() -> None:
    arguments = workplace.options(__doc__, add_options)
    runs: dict[str, list[list[float]]] = {ALONE: [], OURS: [], MMAP: []}
    with TemporaryDirectory() as scratch:
        for _ in range(arguments.rounds):
            for kind, found in runs.items():
                found.append(delays(kind, arguments.room_mib, arguments.seconds, Path(scratch)))
    rows, figures = [], {}
    for kind, found in runs.items():
        every = sorted(delay for run in found for delay in run)
        figures[kind] = {
            "median": statistics.median(every),
            "per_thousand_990": every[len(every) * 99 // 100],
            "worst_of_each_run": [max(run) for run in found],
            "delays": len(every),
        }
        worst = ", ".join(f"{max(run) * 1e3:.0f}" for run in found)
        rows.append([kind, f"{statistics.median(every) * 1e3:.1f}", f"{figures[kind]['per_thousand_990'] * 1e3:.1f}", worst])
    print_table(["a neighbour", "median, ms", "99%, ms", "worst of each run, ms"], rows)
    write_json(arguments.output, "neighbour", figures)


if __name__ == "__main__":
    main()
