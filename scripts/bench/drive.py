"""The drive's speed for large direct reads in random order, by fio where it is installed and by a measurement of our own.

The roofline takes ours; fio's is printed beside it. fio reads into a few buffers of small pages, over and over: a drive that likes long
segments reads faster into huge pages, and any drive reads faster into buffers that stay in the processor's cache than into memory, by a quarter on
one machine. Weights go to memory, in huge pages where there are any, and so does our measurement. A virtual drive's
speed changes from minute to minute, so it is measured directly before and after each run that is compared with it. It
may also be faster for a
second than for longer, by a budget of bursts or a cache of its host: what counts is what it sustains.
"""

import ctypes
import json
import mmap
import os
import random
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

# To find the best setting, and to see what the drive sustains with it.
SHORT_SECONDS = 1.0
SUSTAINED_SECONDS = 8.0
# Bytes of a read, and reads in flight.
SETTINGS = ((1 << 20, 16), (4 << 20, 4), (4 << 20, 32), (16 << 20, 4))
HUGE_PAGE_BYTES = 2 << 20
# All buffers together: far more than a processor's cache.
DESTINATION_BYTES = 1 << 30


@dataclass(frozen=True)
class DriveSpeed:
    """Bytes per second; `fio` is None where it is not installed."""

    own: float
    fio: float | None

    def __str__(self) -> str:
        fio = "fio is not installed" if self.fio is None else f"fio {self.fio / 1e9:.2f}"
        return f"{self.own / 1e9:.2f} GB/s into memory ({fio})"


def drive_speed(file: Path) -> DriveSpeed:
    """What the drive sustains with the best of several block sizes and depths."""
    best = max(SETTINGS, key=lambda setting: read_speed(file, *setting, SHORT_SECONDS))
    own = read_speed(file, *best, SUSTAINED_SECONDS)
    return DriveSpeed(own, fio_speed(file, *best, SUSTAINED_SECONDS) if shutil.which("fio") else None)


def read_speed(file: Path, block_bytes: int, depth: int, seconds: float) -> float:
    """`depth` threads that each read random blocks past the page cache, into huge pages where the system has them."""
    buffers = [huge_buffer(DESTINATION_BYTES // depth // block_bytes * block_bytes) for _ in range(depth)]
    counts = [0] * depth
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        start = time.monotonic()
        arguments = [(start + seconds, descriptor, buffer, block_bytes, counts, index) for index, buffer in enumerate(buffers)]
        readers = [threading.Thread(target=read_until, args=some) for some in arguments]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return sum(counts) * block_bytes / (time.monotonic() - start)
    finally:
        os.close(descriptor)


def huge_buffer(size_bytes: int) -> memoryview:
    """Touched memory. Private, and aligned to a huge page: no other is put into one."""
    memory = mmap.mmap(-1, size_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    first = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE_BYTES
    buffer = memoryview(memory)[first : first + size_bytes]
    for position in range(0, size_bytes, mmap.PAGESIZE):
        buffer[position] = 1
    return buffer


def read_until(end: float, descriptor: int, buffer: memoryview, block_bytes: int, counts: list[int], index: int) -> None:
    block_count = os.fstat(descriptor).st_size // block_bytes
    places = random.Random()  # other places each time: a host may have a cache of its own
    destinations = [buffer[start : start + block_bytes] for start in range(0, len(buffer), block_bytes)]
    while time.monotonic() < end:
        destination = destinations[counts[index] % len(destinations)]
        read_bytes = os.preadv(descriptor, [destination], places.randrange(block_count) * block_bytes)
        if read_bytes != block_bytes:
            raise OSError(f"a read of {block_bytes} bytes returned {read_bytes}")
        counts[index] += 1


def fio_speed(file: Path, block_bytes: int, depth: int, seconds: float) -> float:
    command = ["fio", f"--filename={file}", "--name=read", "--rw=randread", "--readonly", "--time_based", "--direct=1"]
    command += ["--norandommap", "--randrepeat=0", "--ioengine=io_uring", f"--bs={block_bytes}", f"--iodepth={depth}"]
    command += [f"--runtime={seconds * 1000:.0f}ms", "--output-format=json"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(report[report.index("{") :])["jobs"][0]["read"]["bw_bytes"]
