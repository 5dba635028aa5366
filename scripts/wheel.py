"""Packs the same programs as `make dist`, and the backend of `make backend`, into a wheel: build/dist/hypura-VERSION-*.whl.

It is for this kind of machine (linux_x86_64), not for an index, whose wheels must bring more of the system's libraries along.
"""

import base64
import hashlib
import platform
import shutil
import tempfile
import zipfile
from pathlib import Path

import dist
from binaries import needed_names

BACKEND = dist.ROOT / "build/backend"
MODULE = dist.ROOT / "python/hypura"

METADATA = """\
Metadata-Version: 2.1
Name: hypura
Version: {version}
Summary: Run language models that are larger than memory: llama.cpp with weights that stream from the drive
License: MIT
Requires-Python: >=3.9
"""

WHEEL = """\
Wheel-Version: 1.0
Generator: scripts/wheel.py of libhypura
Root-Is-Purelib: false
Tag: {tag}
"""


class Wheel:
    """A wheel that is being written."""

    def __init__(self, path: Path) -> None:
        self.archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6)
        self.records: list[str] = []

    def add(self, name: str, content: bytes, is_program: bool = False) -> None:
        # The earliest time that the format has: the same sources give the same wheel.
        entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        entry.external_attr = (0o100755 if is_program else 0o100644) << 16
        entry.compress_type = zipfile.ZIP_DEFLATED
        self.archive.writestr(entry, content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        self.records.append(f"{name},sha256={digest},{len(content)}")

    def add_programs(self, name: str, folder: Path) -> None:
        for known_as, path in needed_names(folder).items():
            self.add(f"{name}/{known_as}", path.read_bytes(), is_program=bool(path.stat().st_mode & 0o100))

    def close(self, information: str) -> None:
        record = f"{information}/RECORD"
        self.archive.writestr(record, "\n".join([*self.records, f"{record},,"]) + "\n")
        self.archive.close()


def write(path: Path, tag: str, tree: Path) -> None:
    wheel = Wheel(path)
    for module in sorted(MODULE.glob("*.py")):
        wheel.add(f"hypura/{module.name}", module.read_bytes())
    wheel.add_programs("hypura/bin", tree / "bin")
    wheel.add_programs("hypura/backend", tree / "backend")
    information = f"hypura-{dist.version()}.dist-info"
    for licence in sorted((tree / "licenses").rglob("*")):
        if licence.is_file():
            wheel.add(f"{information}/licenses/{licence.relative_to(tree / 'licenses')}", licence.read_bytes())
    wheel.add(f"{information}/METADATA", METADATA.format(version=dist.version()).encode())
    wheel.add(f"{information}/WHEEL", WHEEL.format(tag=tag).encode())
    wheel.add(f"{information}/entry_points.txt", b"[console_scripts]\nhypura = hypura.__main__:main\n")
    wheel.close(information)


def main() -> None:
    dist.DIST.mkdir(parents=True, exist_ok=True)
    tag = f"py3-none-{platform.system().lower()}_{platform.machine()}"
    path = dist.DIST / f"hypura-{dist.version()}-{tag}.whl"
    with tempfile.TemporaryDirectory(dir=dist.DIST) as folder:
        tree = Path(folder) / "tree"
        dist.put_together(tree)
        (tree / "backend").mkdir()
        for library in ("libggml-hypura.so", "libhypura.so.1"):
            shutil.copy2(BACKEND / library, tree / "backend")
        dist.strip(tree / "backend")
        write(path, tag, tree)
    print(f"{path.relative_to(dist.ROOT)}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
