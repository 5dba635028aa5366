"""Fixtures of the tests that need a machine with a GPU; the rest is that of the end-to-end tests."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from logits import LogitsProgram  # noqa: E402
from programs import BIN, REPOSITORY, run  # noqa: E402

sys.path.insert(0, str(REPOSITORY / "scripts" / "models"))
from sample_text import CHECKING_TEXT, FITTING_TEXT  # noqa: E402


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(CHECKING_TEXT + FITTING_TEXT)
    return path


@pytest.fixture(scope="session")
def logits(tmp_path_factory: pytest.TempPathFactory, text_file: Path):
    """tests/e2e/logits.cpp, linked with the build that has libhypura and a GPU's backend."""
    program = LogitsProgram.build(BIN, tmp_path_factory.mktemp("logits"), text_file)
    yield program
    program.discard()


@pytest.fixture(scope="session", autouse=True)
def device(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a GPU all would be compared with itself."""
    listed = run("llama-completion", ["--list-devices"], {}, tmp_path_factory.mktemp("devices")).succeeded().output
    if not re.search(r"^ +(?!Hypura)\w+:", listed, re.MULTILINE):
        pytest.fail(f"no GPU; llama-completion --list-devices says: {listed}")
