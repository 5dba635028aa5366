"""Packs the same programs as `make dist` into a Debian package: build/dist/hypura_VERSION_ARCHITECTURE.deb.

Everything lies in /usr/lib/hypura, of which /usr/bin has the hypura command; llama.cpp's programs keep out of the way of others'.
"""

import gzip
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import dist
from binaries import debian_architecture, glibc_version, is_elf

CONTROL = """\
Package: hypura
Version: {version}
Architecture: {architecture}
Maintainer: the authors of libhypura <hypura@localhost>
Installed-Size: {kibibytes}
Depends: {libc}, libstdc++6, libgomp1
Section: science
Priority: optional
Description: run language models that are larger than memory
 llama.cpp with libhypura, which streams the weights of GGUF models from the
 drive: a server that speaks the HTTP APIs of Ollama and OpenAI, a command line,
 and a planner that says how fast a model would be before it is downloaded.
"""


def put_together(tree: Path) -> None:
    library = tree / "usr/lib/hypura"
    dist.put_together(library)
    documents = tree / "usr/share/doc/hypura"
    documents.mkdir(parents=True)
    shutil.move(library / "licenses", documents / "licenses")
    (library / "README").unlink()
    licence = (dist.ROOT / "LICENSE").read_text()
    (documents / "copyright").write_text(f"{licence}\nlicenses/ has the terms of what is linked into the programs.\n")

    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/hypura").symlink_to("../lib/hypura/bin/hypura")
    command = library / "bin/hypura"
    manual = tree / "usr/share/man/man1"
    manual.mkdir(parents=True)
    for name in ["", *commands(command)]:
        page = output(command, "man", *name.split())
        # Without a time, so that the same sources give the same package.
        (manual / f"{'-'.join(['hypura', *name.split()])}.1.gz").write_bytes(gzip.compress(page, mtime=0))
    completions = tree / "usr/share/bash-completion/completions/hypura"
    completions.parent.mkdir(parents=True)
    completions.write_bytes(output(command, "completions", "bash"))


def output(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def commands(command: Path) -> list[str]:
    """What `hypura --help` lists, but its own help."""
    listed = output(command, "--help").decode().split("Commands:\n", 1)[1].split("\n\n", 1)[0]
    return [name for name in re.findall(r"^  (\w+)", listed, re.MULTILINE) if name != "help"]


def control(tree: Path) -> str:
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    oldest = glibc_version([path for path in files if is_elf(path)])
    return CONTROL.format(
        version=dist.version(),
        architecture=debian_architecture(),
        kibibytes=sum(path.stat().st_size for path in files) // 1024,
        libc=f"libc6 (>= {oldest[0]}.{oldest[1]})" if oldest else "libc6",
    )


def set_modes(tree: Path) -> None:
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def main() -> None:
    if shutil.which("dpkg-deb") is None:
        raise SystemExit("dpkg-deb is missing: Debian packages are made on Debian and what comes from it")
    dist.DIST.mkdir(parents=True, exist_ok=True)
    package = dist.DIST / f"hypura_{dist.version()}_{debian_architecture()}.deb"
    with tempfile.TemporaryDirectory(dir=dist.DIST) as folder:
        tree = Path(folder) / "tree"
        put_together(tree)
        set_modes(tree)
        text = control(tree)
        (tree / "DEBIAN").mkdir(mode=0o755)
        (tree / "DEBIAN/control").write_text(text)
        tree.chmod(0o755)
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, package], check=True, stdout=subprocess.DEVNULL)
    print(f"{package.relative_to(dist.ROOT)}: {package.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
