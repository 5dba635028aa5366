"""Fixtures. The command is that of `make cli`; `HYPURA_TEST_COMMAND` names another."""

from pathlib import Path

import pytest

from hypura_server import HYPURA, PROJECTOR, REPOSITORY, SMOLLM2, STREAMED, HypuraServer


def pytest_configure(config: pytest.Config) -> None:
    for needed, target in [(HYPURA, "cli"), (REPOSITORY / "build" / "llama" / "bin" / "llama-server", "llama"), (SMOLLM2, "models"), (PROJECTOR, "models")]:
        if not needed.exists():
            raise pytest.UsageError(f"{needed} is missing; run make {target}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    """SmolLM2, streamed under a small budget, for all tests that leave the server as it was."""
    with HypuraServer(SMOLLM2, tmp_path_factory.mktemp("server"), *STREAMED, "--parallel", "4", "--ctx", "2048") as running:
        yield running
        assert running.get("/metrics").text.count("\nhypura_llama_server_starts_total 1\n") == 1, running.log


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with two models, one of them in a folder."""
    models = tmp_path / "models"
    (models / "other").mkdir(parents=True)
    (models / "first.gguf").symlink_to(SMOLLM2)
    (models / "other" / "second.gguf").symlink_to(SMOLLM2)
    (models / "broken.gguf").write_text("no model")
    return models
