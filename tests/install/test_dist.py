"""The tarball of `make dist`: complete, and nothing in it needs the place where it was made."""

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from machine import MODELS, REPOSITORY, environment, run, skip

PROGRAMS = {"hypura", "llama-server", "llama-cli", "llama-completion", "llama-bench", "llama-perplexity", "llama-mtmd-cli", "ggml-rpc-server"}
# What a machine that runs the tarball has of its own.
SYSTEM = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp))\.so\.\d+")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run(["make", "-C", REPOSITORY, "dist", "CPU_VARIANTS=none"])
    (archive,) = (REPOSITORY / "build" / "dist").glob(f"*-{platform.machine()}.tar.gz")
    folder = tmp_path_factory.mktemp("far away")
    run(["tar", "-xf", archive, "-C", folder])
    (top,) = folder.iterdir()
    assert archive.name == f"{top.name}.tar.gz"
    return top


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it can be read when the repository cannot."""
    return Path(shutil.copy(MODELS / "smollm2.gguf", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def out_of_reach() -> list[str]:
    """Words before a command that hide the repository from it: an empty folder lies over it."""
    hide = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(REPOSITORY)]
    probe = subprocess.run([*hide, "test", "!", "-e", str(REPOSITORY / "Makefile")], env=environment({}), capture_output=True)
    if probe.returncode:
        skip("this system does not let a user hide a folder (unshare --user --mount)")
    return hide


def test_libraries_are_found_beside_the_programs_or_in_any_system(unpacked: Path) -> None:
    folder = unpacked / "bin"
    present = {path.name for path in folder.iterdir()}
    assert PROGRAMS <= present
    for path in folder.iterdir():
        dynamic = run(["readelf", "-d", path]).stdout
        paths = re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", dynamic)
        assert all(part.startswith("$ORIGIN") for joined in paths for part in joined.split(":")), (path.name, paths)
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
        missing = [name for name in needed if name not in present and not SYSTEM.fullmatch(name)]
        assert not missing, (path.name, missing)


def test_links_stay_inside(unpacked: Path) -> None:
    for path in unpacked.rglob("*"):
        assert path.resolve(strict=True).is_relative_to(unpacked), path


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_every_program_starts(unpacked: Path, out_of_reach, program: str) -> None:
    flag = "--help" if program in ("llama-bench", "ggml-rpc-server") else "--version"
    run([*out_of_reach, unpacked / "bin" / program, flag])


def test_it_streams(unpacked: Path, out_of_reach, model: Path, tmp_path) -> None:
    """The text is that of a resident run."""
    words = "-n 16 -c 256 --temp 0 --no-repack -no-cnv --no-display-prompt".split()
    command = [*out_of_reach, unpacked / "bin" / "llama-completion", "-m", model, *words, "-p", "The capital of Norway is"]
    stats = tmp_path / "stats.json"
    resident = run(command, {"HYPURA": "off"}).stdout.strip()
    streamed = run(command, {"HYPURA": "stream", "HYPURA_RAM": "20M", "HYPURA_STATS": str(stats)}).stdout.strip()
    assert len(resident) > 10
    assert streamed == resident
    figures = json.loads(stats.read_text())
    assert figures["mode"] == "dense-streaming" and figures["read_bytes"] > 0


def test_the_command_finds_the_programs(unpacked: Path, out_of_reach, model: Path) -> None:
    words = ["run", model, "--ram", "20M", "--stream", "-n", "8", "-p", "The capital of Norway is", "--", "--no-repack"]
    finished = run([*out_of_reach, unpacked / "bin" / "hypura", *words])
    assert finished.stdout.strip() and "dense-streaming" in finished.stderr


def test_terms_are_there(unpacked: Path) -> None:
    assert "MIT" in (unpacked / "licenses" / "libhypura" / "LICENSE").read_text()
    assert "ggml" in (unpacked / "licenses" / "llama.cpp" / "LICENSE").read_text()
    crates = (unpacked / "licenses" / "libhypura" / "crates.txt").read_text()
    for crate in ("tokio", "libc", "microlp", "io-uring"):
        assert re.search(rf"^(.*, )?{crate} \d", crates, re.MULTILINE), crate
    assert "cbindgen" not in crates
