"""The tarball with code for several kinds of CPU: a program takes the best that its machine can run. make test-variants."""

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "build" / "models" / "smollm2.gguf"
# The least and the most common one; as each takes minutes to compile, these alone.
VARIANTS = ["armv8.0_1", "armv8.2_1"] if platform.machine() in ("aarch64", "arm64") else ["x64", "haswell"]


def clean(settings: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("HYPURA", "LLAMA_", "GGML_"))} | settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs, unpacked far away."""
    subprocess.run(["make", "-C", REPOSITORY, "dist", f"CPU_VARIANTS={' '.join(VARIANTS)}"], env=clean({}), check=True)
    (archive,) = (REPOSITORY / "build" / "dist").glob(f"*-{platform.machine()}.tar.gz")
    unpacked = tmp_path_factory.mktemp("far away")
    subprocess.run(["tar", "-xf", archive, "-C", unpacked], check=True)
    (top,) = unpacked.iterdir()
    return top / "bin"


def test_code_for_the_cpu_is_chosen_when_a_program_starts(folder: Path) -> None:
    """Where the best is not there the next, which streams as well."""
    assert {path.name for path in folder.glob("libggml-cpu*.so")} == {f"libggml-cpu-{name}.so" for name in VARIANTS}
    command = [folder / "llama-completion", "-m", MODEL, *"-n 4 -c 256 --temp 0 --no-repack -no-cnv -lv 4".split(), "-p", "The capital of Norway is"]
    settings = clean({"HYPURA": "stream", "HYPURA_RAM": "20M"})
    for name in reversed(VARIANTS):
        run = subprocess.run(command, env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        assert re.search(rf"loaded CPU backend from .*/libggml-cpu-{re.escape(name)}\.so", run.stderr), run.stderr[-4000:]
        assert "hypura: dense-streaming" in run.stderr
        (folder / f"libggml-cpu-{name}.so").unlink()
