"""Fixtures: an installed tree, and the ways of building hosts against it."""

import pytest

from machine import LLAMA_BUILD, MODELS, REPOSITORY
from prefix import Prefix
from toolchain import COMPILERS, KINDS, Toolchain


def pytest_configure(config: pytest.Config) -> None:
    for needed, target in [
        (LLAMA_BUILD / "bin" / "llama-completion", "llama-dist"),
        (REPOSITORY / "target" / "release" / "hypura", "cli"),
        (MODELS / "smollm2-moe.gguf", "models"),
    ]:
        if not needed.exists():
            raise pytest.UsageError(f"{needed} is missing; run make {target}")


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Prefix:
    """libhypura, and a libllama that uses it."""
    tree = Prefix.moved(tmp_path_factory.mktemp("install"))
    tree.add_llama()
    return tree


@pytest.fixture(scope="session", params=[(name, kind) for kind in KINDS for name in COMPILERS], ids="-".join)
def toolchain(request: pytest.FixtureRequest, prefix: Prefix, tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    return Toolchain(*request.param, prefix, tmp_path_factory.mktemp("hosts"))


@pytest.fixture(scope="session")
def gcc(prefix: Prefix, tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    """For what does not depend on the compiler."""
    return Toolchain("gcc", "plain", prefix, tmp_path_factory.mktemp("hosts"))
