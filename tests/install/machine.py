"""Where things are, and running programs: a clean environment, and a skip that is loud when a tool is missing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = Path(os.environ.get("HYPURA_TEST_MODELS", REPOSITORY / "build" / "models")).absolute()
LLAMA_BUILD = REPOSITORY / "build" / "llama-dist"
TIMEOUT_SECONDS = 300


def skip(reason: str) -> None:
    """Does not run a test, which the summary counts. With HYPURA_TEST_NO_SKIP set that is a failure."""
    if "HYPURA_TEST_NO_SKIP" in os.environ:
        pytest.fail(f"skipping is not allowed here: {reason}")
    pytest.skip(reason)


def require(command: str, package: str) -> None:
    if shutil.which(command) is None:
        skip(f"there is no {command}; on Debian and Ubuntu: apt-get install {package}")


def environment(settings: dict[str, str]) -> dict[str, str]:
    """This process's environment with these settings and no others of libhypura, llama.cpp or an installation."""
    foreign = ("HYPURA", "LLAMA_", "GGML_", "PKG_CONFIG", "CMAKE_", "LD_LIBRARY_PATH", "DESTDIR", "CFLAGS", "CXXFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"OMP_WAIT_POLICY": "passive"} | settings


def run(command: list[str | Path], settings: dict[str, str] | None = None, status: int = 0, **more) -> subprocess.CompletedProcess:
    """Runs a program that must end with this status."""
    finished = subprocess.run(
        [str(word) for word in command],
        env=environment(settings or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT_SECONDS,
        **more,
    )
    told = f"{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    assert finished.returncode == status, f"exit status {finished.returncode} of {' '.join(map(str, command))}\n{told}"
    return finished
