"""Packs what `make llama-dist cli` built into a tarball that runs from anywhere: build/dist/hypura-VERSION-SYSTEM-MACHINE.tar.gz.

    dist.py             for this kind of machine
    dist.py MACHINE     what was cross-compiled for another: make dist TARGET=MACHINE

Programs and libraries lie in one folder, where their rpath ($ORIGIN) finds them and the hypura command finds the programs.
"""

import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from binaries import glibc_version, is_elf
from crate_licences import crate_licences

ROOT = Path(__file__).resolve().parent.parent
LLAMA_SOURCE = ROOT / "build/llama-src"
DIST = ROOT / "build/dist"

README = """\
llama.cpp with libhypura {version}: runs models that are larger than memory. Nothing needs to be installed:

    bin/llama-server -m huge-model.gguf
    bin/hypura run huge-model.gguf -p 'Why is the sky blue?'

It needs {glibc}, libstdc++ and libgomp (on Debian and Ubuntu: apt-get install libstdc++6 libgomp1), and {cpu}.
The folder can be moved, but programs and libraries in bin/ belong together. licenses/ has the terms.
"""


def version() -> str:
    return re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]


class Built:
    """What was built for a kind of machine: this one's, or another that is named."""

    def __init__(self, target: str | None = None) -> None:
        self.machine = target or platform.machine()
        self.programs = ROOT / (f"build/llama-dist-{target}" if target else "build/llama-dist") / "bin"
        self.command = ROOT / (f"target/{target}-unknown-linux-gnu" if target else "target") / "release/hypura"
        self.strip = f"{target}-linux-gnu-strip" if target else "strip"


def strip(folder: Path, program: str = "strip") -> None:
    binaries = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    subprocess.run([program, "--strip-unneeded", *binaries], check=True)


def readme(folder: Path, machine: str) -> str:
    oldest = glibc_version([path for path in folder.iterdir() if is_elf(path)])
    glibc = f"glibc {oldest[0]}.{oldest[1]} or newer" if oldest else "glibc"
    # Of variants a program takes the best for its machine.
    has_variants = any(folder.glob("libggml-cpu-*"))
    cpu = f"any {machine} CPU" if has_variants or machine != "x86_64" else "a CPU with AVX2"
    return README.format(version=version(), glibc=glibc, cpu=cpu)


def put_together(folder: Path, built: Built | None = None) -> None:
    built = built or Built()
    shutil.copytree(built.programs, folder / "bin", symlinks=True)
    shutil.copy2(built.command, folder / "bin")
    strip(folder / "bin", built.strip)
    (folder / "README").write_text(readme(folder / "bin", built.machine))

    licences = folder / "licenses"
    shutil.copytree(LLAMA_SOURCE / "licenses", licences / "llama.cpp")
    shutil.copy2(LLAMA_SOURCE / "LICENSE", licences / "llama.cpp")
    for licence in (LLAMA_SOURCE / "vendor").rglob("LICENSE*"):
        shutil.copy2(licence, licences / "llama.cpp" / f"LICENSE-{licence.parent.name}")
    (licences / "libhypura").mkdir()
    shutil.copy2(ROOT / "LICENSE", licences / "libhypura")
    (licences / "libhypura" / "crates.txt").write_text(crate_licences())


def pack(folder: Path) -> Path:
    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    archive = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        tar.add(folder, folder.name, filter=anonymous)
    return archive


def remove_earlier(dist: Path, kind: str) -> None:
    """Of a kind of machine one version is there: what was packed before the version changed is not taken for the new one."""
    for folder in dist.glob(f"hypura-*-{kind}"):
        shutil.rmtree(folder)
    for archive in dist.glob(f"hypura-*-{kind}.tar.gz"):
        archive.unlink()


def main() -> None:
    built = Built(*sys.argv[1:])
    kind = f"{platform.system().lower()}-{built.machine}"
    remove_earlier(DIST, kind)
    folder = DIST / f"hypura-{version()}-{kind}"
    put_together(folder, built)
    archive = pack(folder)
    print(f"{archive.relative_to(ROOT)}: {archive.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
