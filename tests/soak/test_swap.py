"""Swap: the system may move what a process holds to a drive. Weights are on one already, and must not go to another."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "e2e"))

from memory_cgroup import MemoryLimit, changing_memory_limit  # noqa: E402, the tests of whole programs have it
from models import SMOLLM2_MOE  # noqa: E402
from programs import OFF, REPOSITORY  # noqa: E402
from server import Server  # noqa: E402

SWAP_BYTES = 512 << 20
NEIGHBOUR_BYTES = 200 << 20
LIMIT_BYTES = SMOLLM2_MOE.other_bytes + (420 << 20)
ROUNDS = 3
BODY = {"prompt": "The capital of Norway is", "n_predict": 8}
ARGUMENTS = ["-np", "1", "-c", "1024", "-ub", "128", "-b", "128", "-t", "1"]

# Holds this much memory and looks at it all the time, while it reads a file from the drive for each line that it gets: others hold what is
# used least, and is swapped if anything is.
NEIGHBOUR = """
import os, sys
held = bytearray(int(sys.argv[1]))
looks = range(0, len(held), 4096)
for _ in sys.stdin:
    with open(sys.argv[2], "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(16 << 20):
            held[::4096] = b"x" * len(looks)
    print("read", flush=True)
"""

# Of a process's mappings only the slots ask for huge pages.
ADVISED = re.compile(r"^VmFlags:.* hg( |$)", re.MULTILINE)


@pytest.fixture
def swap() -> Iterator[None]:
    """A file that the system may swap to, unless it has one anyway. Skips where that is not allowed."""
    path = REPOSITORY / "build" / "test-swap"
    if path.exists():  # of a run that was killed
        subprocess.run(["swapoff", path], capture_output=True)
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        yield
        return
    try:
        with path.open("wb") as file:
            path.chmod(0o600)
            os.posix_fallocate(file.fileno(), 0, SWAP_BYTES)
        for command in ("mkswap", "swapon"):
            try:
                subprocess.run([command, path], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no swap can be had here: {error}")
        try:
            yield
        finally:
            subprocess.run(["swapoff", path], check=True)
    finally:
        path.unlink()


def kib_bytes(text: str, name: str) -> int:
    """The sum of a field, as the files of a process have it."""
    return sum(int(kib) << 10 for kib in re.findall(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE))


def slots(process_id: int) -> str:
    """What the system tells of the mappings that weights are read into."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{process_id}/smaps").read_text(), flags=re.MULTILINE)
    return "".join(mapping for mapping in mappings if ADVISED.search(mapping))


def press(server: Server, limit: MemoryLimit, right: str) -> None:
    """Have it answer beside a neighbour in its limit, which is too small for what both would like to have."""
    command = [*limit.through, sys.executable, "-c", NEIGHBOUR, str(NEIGHBOUR_BYTES), str(SMOLLM2_MOE.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as neighbour:
        for _ in range(ROUNDS):
            neighbour.stdin.write(b"\n")
            neighbour.stdin.flush()
            assert server.text("/completion", BODY) == right
            assert neighbour.stdout.readline() == b"read\n"
        neighbour.stdin.close()


def test_weights_are_not_swapped(swap: None, tmp_path: Path) -> None:
    """Where those of a program that holds all of them are swapped for a neighbour, ours give up what it takes."""
    with changing_memory_limit(LIMIT_BYTES, may_swap=True) as limit:
        with Server(SMOLLM2_MOE.path, OFF, tmp_path, *ARGUMENTS, "--load-mode", "none", through=limit.through) as server:
            right = server.text("/completion", BODY)
            press(server, limit, right)
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            assert kib_bytes(status, "VmSwap") > 0, "nothing is ever swapped here"
    with changing_memory_limit(LIMIT_BYTES, may_swap=True) as limit:
        with Server(SMOLLM2_MOE.path, {"HYPURA": "stream"}, tmp_path, *ARGUMENTS, through=limit.through) as server:
            assert server.text("/completion", BODY) == right
            press(server, limit, right)
            weights = slots(server.process.pid)
            assert kib_bytes(weights, "Rss") > 0
            assert kib_bytes(weights, "Swap") == 0, server.log[-3000:]
