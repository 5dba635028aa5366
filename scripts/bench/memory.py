"""The memory that a run gets: a cgroup around it, made as the tests make theirs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import workplace  # noqa: F401  (makes the tests' module known)
from memory_cgroup import memory_limit


@contextmanager
def limited(limit_bytes: int) -> Iterator[tuple[str, ...]]:
    """The words to put before a command that gets no more memory than this. Ends the bench where no cgroup can be made."""
    try:
        with memory_limit(limit_bytes) as through:
            yield through
    except pytest.skip.Exception as reason:
        sys.exit(str(reason))
