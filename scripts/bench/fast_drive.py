"""A drive as fast as memory, for what the machine's own drive would hide: a loop device with direct I/O over a file in memory."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roofline import memory_available_bytes

MEMORY = Path("/dev/shm")
# What a file system and the rest of the machine need beside the file.
FILE_SYSTEM_BYTES = 512 << 20
MARGIN_BYTES = 3 << 30


@contextmanager
def fast_drive(file: Path, spare_bytes: int) -> Iterator[Path | None]:
    """The file's copy on such a drive. None, with a line that says why, where none can be made: besides the copy, `spare_bytes` of memory
    must be left."""
    size_bytes = file.stat().st_size + FILE_SYSTEM_BYTES
    available_bytes = memory_available_bytes()
    if size_bytes + spare_bytes + MARGIN_BYTES > available_bytes:
        needed = (size_bytes + spare_bytes + MARGIN_BYTES) / 1e9
        print(f"no fast drive: {needed:.1f} GB of memory are needed and {available_bytes / 1e9:.1f} GB available", file=sys.stderr)
        yield None
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="hypura-bench-") as folder:
        image, place = Path(folder, "image"), Path(folder, "mounted")
        place.mkdir()
        with image.open("wb") as out:
            out.truncate(size_bytes)
        device = None
        try:
            device = run("losetup", "--direct-io=on", "--find", "--show", image)
            run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", device)
            run("mount", device, place)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no fast drive: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
            if device:
                run("losetup", "-d", device)
            yield None
            return
        try:
            yield Path(shutil.copyfile(file, place / file.name))
        finally:
            run("umount", place)
            run("losetup", "-d", device)


def run(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout.strip()
