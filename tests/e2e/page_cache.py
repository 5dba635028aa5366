"""What of a file is in the page cache, and putting it there or not."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mlock.argtypes = LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def bring_in(path: Path, share: float = 1.0) -> None:
    """Puts the first part of a file there, and nothing else of it. What nobody uses the system may take out again within seconds."""
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        # The kernel reads no further ahead than it is told.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        left = int(share * size)
        while left > 0 and (read := len(file.read(min(left, 4 << 20)))):
            left -= read


@contextmanager
def locked(path: Path, share: float) -> Iterator[None]:
    """While this lasts, the first part of a file is there. Nobody can drop it."""
    bring_in(path, share)
    length = int(share * path.stat().st_size)
    with path.open("rb") as file:
        # Not mmap.mmap(), which tells no address of what may only be read; a copy that could be written to would not be the file's pages.
        address = LIBC.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        if LIBC.mlock(address, length) != 0:
            pytest.skip(f"{length >> 20} MiB cannot be locked: {os.strerror(ctypes.get_errno())}")
        yield
    finally:
        LIBC.munmap(address, length)


def cached_share(path: Path) -> float:
    """Which part of its pages is there."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as mapping:
        pages = -(-len(mapping) // mmap.PAGESIZE)
        present = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        if LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapping)), present) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(entry & 1 for entry in present) / pages
