"""A memory cgroup around a process: version 1 or 2, whichever this machine lets the tests make."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

V1_ROOT = Path("/sys/fs/cgroup/memory")
V2_ROOT = Path("/sys/fs/cgroup")


def _make(limit_bytes: int) -> Path:
    name = f"hypura-test-{os.getpid()}"
    if (V1_ROOT / "memory.limit_in_bytes").exists():
        directory = V1_ROOT / name
        limits = [("memory.limit_in_bytes", limit_bytes), ("memory.swappiness", 0)]
    else:
        # The own cgroup cannot have children with controllers as long as processes are in it, so it is the root's.
        directory = V2_ROOT / name
        control = V2_ROOT / "cgroup.subtree_control"
        if "memory" not in control.read_text().split():
            control.write_text("+memory")
        limits = [("memory.max", limit_bytes), ("memory.swap.max", 0)]
    directory.mkdir()
    for file, value in limits:
        if (directory / file).exists():
            (directory / file).write_text(str(value))
    return directory


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[tuple[str, ...]]:
    """The words to put before a command so that it and its children get no more memory. Skips where that is not allowed."""
    try:
        directory = _make(limit_bytes)
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        yield ("sh", "-c", f'echo $$ > {directory}/cgroup.procs && exec "$@"', "sh")
    finally:
        directory.rmdir()
