"""The Debian package and the wheel: installed from the local file, without a compiler, they run and stream."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from machine import MODELS, REPOSITORY, require, run

STOCK = REPOSITORY / "build" / "llama-stock" / "bin" / "llama-completion"
DIST = REPOSITORY / "build" / "dist"
PROMPT = ["-p", "The capital of Norway is"]


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the package puts into a system, and what it says of itself."""
    require("dpkg-deb", "dpkg")
    run([sys.executable, REPOSITORY / "scripts" / "deb.py"])
    (package,) = DIST.glob("*.deb")
    root = tmp_path_factory.mktemp("root")
    run(["dpkg-deb", "--extract", package, root])
    run(["dpkg-deb", "--control", package, root / "DEBIAN"])
    return root


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and nothing else."""
    run([sys.executable, REPOSITORY / "scripts" / "wheel.py"])
    (wheel,) = DIST.glob("*.whl")
    folder = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python"]
    run([*pip, "install", "--no-index", "--no-deps", wheel])
    assert "hypura" in run([*pip, "check"]).stdout + run([*pip, "list"]).stdout
    return folder


def streams(command: Path, tmp_path: Path) -> None:
    """The command finds llama.cpp's programs beside it, and they stream."""
    stats = tmp_path / "stats.json"
    words = ["run", MODELS / "smollm2.gguf", "--ram", "20M", "--stream", "-n", "8", *PROMPT, "--", "--no-repack"]
    answered = run([command, *words], {"HYPURA_STATS": str(stats)}, cwd=tmp_path)
    assert answered.stdout.strip() and json.loads(stats.read_text())["mode"] == "dense-streaming"


def test_deb(deb: Path, tmp_path: Path) -> None:
    control = (deb / "DEBIAN" / "control").read_text()
    version = re.search(r'^version = "(.*)"$', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert f"Version: {version}\n" in control and re.search(r"^Depends: libc6 \(>= 2\.\d+\), libstdc\+\+6, libgomp1$", control, re.M)
    assert {path.name for path in (deb / "usr" / "bin").iterdir()} == {"hypura"}
    assert (deb / "usr/share/man/man1/hypura-serve.1.gz").exists() and (deb / "usr/share/doc/hypura/copyright").exists()
    for path in deb.rglob("*"):
        assert path.resolve(strict=True).is_relative_to(deb), path
    streams(deb / "usr" / "bin" / "hypura", tmp_path)


def test_wheel(venv: Path, tmp_path: Path) -> None:
    streams(venv / "bin" / "hypura", tmp_path)
    assert run([venv / "bin" / "python", "-m", "hypura", "--version"]).stdout.startswith("hypura ")


def test_the_wheel_streams_in_a_llama_cpp_that_is_not_ours(venv: Path, tmp_path: Path) -> None:
    """One as released, which knows nothing of libhypura but the variable that the module sets."""
    stats = tmp_path / "stats.json"
    program = shutil.copytree(STOCK.parent, tmp_path / "stock", symlinks=True) / STOCK.name
    words = [program, "-m", MODELS / "smollm2.gguf", *"-n 8 -c 256 --temp 0 --no-repack -no-cnv --no-display-prompt".split(), *PROMPT]
    script = "import hypura, subprocess, sys; hypura.use(); subprocess.run(sys.argv[1:], check=True)"
    answered = run([venv / "bin" / "python", "-c", script, *words], {"HYPURA": "stream", "HYPURA_RAM": "20M", "HYPURA_STATS": str(stats)})
    assert answered.stdout.strip() and json.loads(stats.read_text())["mode"] == "dense-streaming"
