"""Fixtures. The models are those of `make models`; `HYPURA_TEST_MODELS` names another directory that holds them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from logits_fixtures import logits, text_file  # noqa: F401
from models import DIRECTORY, SMOLLM2, SMOLLM2_MOE, TINY, TRAINED_MOE, Model
from programs import BACKEND, BIN, OFF_BIN, REPOSITORY, SOURCE, STOCK_BIN


def pytest_configure(config: pytest.Config) -> None:
    programs = ("llama-server", "llama-cli", "llama-completion", "llama-bench")
    for path, target in [
        *((BIN / program, "llama") for program in (*programs, "llama-perplexity")),
        (BIN / "ggml-rpc-server", "llama"),
        (OFF_BIN / "llama-completion", "llama-off"),
        *((STOCK_BIN / program, "llama-stock") for program in programs),
        (BACKEND, "backend"),
    ]:
        # of another version the libraries may be all there is
        if not path.exists() and "HYPURA_TEST_BUILD" not in os.environ:
            raise pytest.UsageError(f"{path} is not built; run make {target}")
    missing = [model.name for model in [SMOLLM2_MOE, *TINY] if not model.path.exists()]
    if missing:
        raise pytest.UsageError(f"models are missing in {DIRECTORY}: {', '.join(missing)}; run make models")


@pytest.fixture
def trained_moe() -> Model:
    require(TRAINED_MOE)
    return TRAINED_MOE


def require(model: Model) -> None:
    """Skip the test when the model is the one that the project does not contain."""
    if model is TRAINED_MOE and not model.path.exists():
        pytest.skip("the trained MoE is absent: ../shared/models/minimoe-64x8-q3_k_s.gguf")


def require_built(model: Model) -> None:
    """Fail when a model that `make arch-models` makes is not there."""
    assert model.path.exists(), f"{model.path} is missing; run make arch-models"


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpu_device.cpp, as a library to be preloaded: a device that computes with the CPU's kernels in memory that is not the host's."""
    path = tmp_path_factory.mktemp("device") / "libtestgpu.so"
    ggml = SOURCE / "ggml"
    command = ["c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", path, Path(__file__).with_name("gpu_device.cpp")]
    command += ["-I", ggml / "include", "-isystem", ggml / "src", "-L", BIN, "-lggml", "-lggml-base", f"-Wl,-rpath,{BIN}"]
    subprocess.run(list(map(str, command)), check=True)
    return path


def widened(model: Model, script: str, hidden: int) -> Path:
    """A model with more hidden units and the same function. Made once and kept."""
    path = DIRECTORY / f"{model.name}-wide-{hidden}.gguf"
    if not path.exists():
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        command = [sys.executable, REPOSITORY / "scripts" / "models" / script, model.path, draft, "--ffn", str(hidden)]
        subprocess.run(command, check=True)
        draft.rename(path)
    return path


@pytest.fixture(scope="session")
def wide_moe() -> Model:
    """1.4 GB: large enough that memory limits bite."""
    return Model("wide-moe", widened(SMOLLM2_MOE, "widen_moe.py", 3072))


@pytest.fixture(scope="session")
def wide_dense() -> Model:
    """0.8 GB, likewise."""
    return Model("wide-dense", widened(SMOLLM2, "widen_dense.py", 12288))
