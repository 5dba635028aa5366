"""ThreadSanitizer on all that shares memory, in a host of many threads: `make test-tsan`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "e2e"))

from models import Model, tiny  # noqa: E402, the tests of whole programs have it
from programs import OFF, REPOSITORY, Finished, run  # noqa: E402

BIN = REPOSITORY / "build" / "tsan" / "bin"
SOURCES = REPOSITORY / "build" / "llama-src"
HERE = Path(__file__).parent
MODELS = [tiny("qwen3moe"), tiny("dense-mixed"), tiny("many-experts")]
ROUNDS = 3
FOUND = "WARNING: ThreadSanitizer"


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host. The runtime is that of nightly, since an older one lacks what nightly's code calls; so clang must not bring its own."""
    folder = tmp_path_factory.mktemp("races")
    sysroot = subprocess.run(["rustc", "+nightly", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()
    triple = f"{os.uname().machine}-unknown-linux-gnu"
    runtime = Path(sysroot) / "lib" / "rustlib" / triple / "lib" / "librustc-nightly_rt.tsan.a"
    headers = ["-I", SOURCES / "include", "-I", SOURCES / "ggml" / "include"]
    compile_ = ["clang++", "-std=c++17", "-O1", "-g", "-fsanitize=thread", "-Wall", "-Wextra", "-Werror", *headers]
    libraries = ["-L", BIN, "-lllama", "-lggml", "-lggml-base", "-lpthread", "-ldl", "-lrt", "-lm", f"-Wl,-rpath,{BIN}"]
    # The libraries find the runtime in the program.
    link = ["clang++", "-Wl,--whole-archive", runtime, "-Wl,--no-whole-archive", "-Wl,--export-dynamic", *libraries]
    for command in (
        [*compile_, "-c", "-o", folder / "races.o", HERE / "races.cpp"],
        [link[0], "-o", folder / "races", folder / "races.o", *link[1:]],
    ):
        subprocess.run(list(map(str, command)), check=True)
    return folder / "races"


def watched(races: Path, arguments: list, settings: dict[str, str], scratch: Path) -> Finished:
    options = f"suppressions={HERE / 'suppressions.txt'} second_deadlock_stack=1"
    return run(races, arguments, settings | {"TSAN_OPTIONS": options}, scratch)


def test_a_race_is_found(races: Path, tmp_path: Path) -> None:
    """Without it, nothing found would say nothing."""
    finished = watched(races, ["canary"], OFF, tmp_path)
    assert finished.status != 0 and f"{FOUND}: data race" in finished.log


def said(finished: Finished) -> list[str]:
    finished.succeeded()
    assert FOUND not in finished.log, finished.log[:20000]
    return finished.output.splitlines()


def budget_bytes(model: Model) -> int:
    return int(0.4 * model.streamable_bytes)


@pytest.mark.parametrize("engine", ["threads", "uring"])
def test_nothing_races(engine: str, races: Path, tmp_path: Path) -> None:
    """Contexts that decode, come and go, prompts that are cancelled, weights that are copied, a model that is loaded and unloaded, all at
    once; and each of them computes what a run without us does."""
    arguments = [str(ROUNDS), *(model.path for model in MODELS)]
    free = said(watched(races, arguments, OFF, tmp_path))
    ram = sum(budget_bytes(model) for model in MODELS)
    settings = {"HYPURA": "stream", "HYPURA_RAM": str(ram), "HYPURA_IO": engine, "HYPURA_STATS": str(tmp_path / "stats.json")}
    streamed = said(watched(races, arguments, settings, tmp_path))
    assert [line for line in streamed if line.startswith("logits")] == [line for line in free if line.startswith("logits")]
    assert streamed[3:] == ["prompts were cancelled: yes", "weights were copied: yes", "all were right: yes"]
