"""llama-cpp-python over a llama.cpp that loads its backends: as it is with the backend beside it, and patched."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "build" / "models" / "smollm2.gguf"
PROMPT, TOKENS = "The capital of Norway is", "8"
NEEDS = ["diskcache==5.6.3", "jinja2==3.1.6", "typing-extensions==4.15.0", "numpy==2.2.6"]
TIMEOUT_SECONDS = 600

sys.path.insert(0, str(REPOSITORY / "scripts"))
import fetch_llama  # noqa: E402
import versions  # noqa: E402


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> tuple[versions.Version, Path]:
    """The newest listed version, and a folder with its Python files and what they import."""
    lines = versions.listed((REPOSITORY / "patches" / "VERSIONS").read_text())
    name, number, digest, folder = [line[1:] for line in lines if line[1] == "llama-cpp-python"][-1]
    modules = tmp_path_factory.mktemp("modules")
    fetch_llama.extract(fetch_llama.pypi_package(name, number, digest, source=True), "llama_cpp", modules / "llama_cpp")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target", modules]
    subprocess.run([*pip, "--only-binary", ":all:", *NEEDS], check=True)
    versions.WORK.mkdir(parents=True, exist_ok=True)
    return versions.package_version(name, number, digest, folder), modules


def complete(modules: Path, settings: dict[str, str]) -> tuple[str, str]:
    """The text and the log."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HYPURA", "GGML_", "LLAMA_"))}
    environment = inherited | {"PYTHONPATH": str(modules), "OMP_WAIT_POLICY": "passive"} | settings
    command = [sys.executable, Path(__file__).with_name("host.py"), MODEL, PROMPT, TOKENS]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return finished.stdout, finished.stderr


@pytest.mark.parametrize("way", versions.WAYS)
def test_python_streams_and_writes_the_same_text(way: str, package, tmp_path: Path) -> None:
    version, modules = package
    tree = versions.WORK / "source"
    for old in (tree, versions.WORK / "build"):
        shutil.rmtree(old, ignore_errors=True)
    version.fetch(tree)
    program, resident, loaded = versions.WAYS[way](version, tree)
    libraries = modules / "llama_cpp" / "lib"
    libraries.unlink(missing_ok=True)
    libraries.symlink_to(program.parent)

    text, _ = complete(modules, resident)
    assert len(text.split()) > 3, "the model writes nothing meaningful"
    stats = tmp_path / "stats.json"
    settings = {"HYPURA": "stream", "HYPURA_RAM": "24M", "HYPURA_STATS": str(stats), "XDG_CACHE_HOME": str(tmp_path)}
    streamed, log = complete(modules, loaded | settings)
    assert streamed == text
    assert re.search("hypura: dense-streaming: ", log), log[-4000:]
    assert json.loads(stats.read_text())["read_bytes"] > 0
