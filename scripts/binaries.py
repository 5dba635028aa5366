"""What packages know of the binaries that they carry."""

import platform
import re
import subprocess
from pathlib import Path


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def needed_names(folder: Path) -> dict[str, Path]:
    """The files of a folder of programs under the names by which they are looked up, once each: a library goes by the name in its header
    (SONAME), so that no links are needed."""
    return {soname(path): path for path in sorted(folder.iterdir()) if not path.is_symlink()}


def soname(path: Path) -> str:
    dynamic = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\(SONAME\).*\[(.*)\]", dynamic)
    return found[1] if found else path.name


def glibc_version(paths: list[Path]) -> tuple[int, int] | None:
    """The oldest glibc that has every symbol that these binaries want; none where they name no version."""
    told = subprocess.run(["readelf", "-V", *paths], check=True, capture_output=True, text=True).stdout
    return max(((int(major), int(minor)) for major, minor in re.findall(r"Name: GLIBC_(\d+)\.(\d+)", told)), default=None)


def debian_architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
