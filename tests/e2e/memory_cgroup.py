"""A memory cgroup around a process: version 1 or 2, whichever this machine lets the tests make."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

V1_ROOT = Path("/sys/fs/cgroup/memory")
V2_ROOT = Path("/sys/fs/cgroup")


def _make(limit_bytes: int, may_swap: bool) -> Path:
    name = f"hypura-test-{os.getpid()}"
    if (V1_ROOT / "memory.limit_in_bytes").exists():
        directory = V1_ROOT / name
        limits = [("memory.limit_in_bytes", limit_bytes), ("memory.swappiness", 100 if may_swap else 0)]
    else:
        # The own cgroup cannot have children with controllers as long as processes are in it, so it is the root's.
        directory = V2_ROOT / name
        control = V2_ROOT / "cgroup.subtree_control"
        if "memory" not in control.read_text().split():
            control.write_text("+memory")
        limits = [("memory.max", limit_bytes), ("memory.swap.max", "max" if may_swap else 0)]
    directory.mkdir()
    for file, value in limits:
        if (directory / file).exists():
            (directory / file).write_text(str(value))
    return directory


class MemoryLimit:
    """A cgroup with a limit that can be changed."""

    def __init__(self, limit_bytes: int, may_swap: bool = False) -> None:
        self.directory = _make(limit_bytes, may_swap)
        self.through = ("sh", "-c", f'echo $$ > {self.directory}/cgroup.procs && exec "$@"', "sh")

    def change(self, limit_bytes: int) -> None:
        """OSError where the system does not take a limit that is below what is used."""
        version_1, version_2 = self.directory / "memory.limit_in_bytes", self.directory / "memory.max"
        (version_1 if version_1.exists() else version_2).write_text(str(limit_bytes))


@contextmanager
def changing_memory_limit(limit_bytes: int, may_swap: bool = False) -> Iterator[MemoryLimit]:
    """A limit for the commands that its words are put before, and for their children. Skips where that is not allowed."""
    try:
        limit = MemoryLimit(limit_bytes, may_swap)
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        yield limit
    finally:
        limit.directory.rmdir()


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[tuple[str, ...]]:
    """The words to put before a command so that it and its children get no more memory."""
    with changing_memory_limit(limit_bytes) as limit:
        yield limit.through
