"""Packs what `make llama-dist cli` built into a tarball that runs from anywhere: build/dist/hypura-VERSION-SYSTEM-MACHINE.tar.gz.

Programs and libraries lie in one folder, where their rpath ($ORIGIN) finds them and the hypura command finds the programs.
"""

import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from crate_licences import crate_licences

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "build/llama-dist/bin"
LLAMA_SOURCE = ROOT / "build/llama-src"
COMMAND = ROOT / "target/release/hypura"
DIST = ROOT / "build/dist"

README = """\
llama.cpp with libhypura {version}: runs models that are larger than memory. Nothing needs to be installed:

    bin/llama-server -m huge-model.gguf
    bin/hypura run huge-model.gguf -p 'Why is the sky blue?'

It needs {libc} or newer, libstdc++ and libgomp (on Debian and Ubuntu: apt-get install libstdc++6 libgomp1){cpu}.
The folder can be moved, but programs and libraries in bin/ belong together. licenses/ has the terms.
"""


def version() -> str:
    return re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]


def readme() -> str:
    libc = " ".join(platform.libc_ver())
    cpu = ", and a CPU with AVX2" if platform.machine() == "x86_64" else ""
    return README.format(version=version(), libc=libc, cpu=cpu)


def strip(folder: Path) -> None:
    binaries = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    subprocess.run(["strip", "--strip-unneeded", *binaries], check=True)


def put_together(folder: Path) -> None:
    shutil.copytree(PROGRAMS, folder / "bin", symlinks=True)
    shutil.copy2(COMMAND, folder / "bin")
    strip(folder / "bin")
    (folder / "README").write_text(readme())

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


def main() -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    folder = DIST / f"hypura-{version()}-{platform.system().lower()}-{platform.machine()}"
    put_together(folder)
    archive = pack(folder)
    print(f"{archive.relative_to(ROOT)}: {archive.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
