"""Fixtures of all tests that compare logits, for their conftest.py to import."""

import sys
from pathlib import Path

import pytest

from logits import LogitsProgram
from programs import BIN, REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts" / "models"))
from sample_text import CHECKING_TEXT, FITTING_TEXT  # noqa: E402


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English text on unlike subjects, longer than any test reads."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(CHECKING_TEXT + FITTING_TEXT)
    return path


@pytest.fixture(scope="session")
def logits(tmp_path_factory: pytest.TempPathFactory, text_file: Path):
    """tests/e2e/logits.cpp, linked with the build that has libhypura."""
    program = LogitsProgram.build(BIN, tmp_path_factory.mktemp("logits"), text_file)
    yield program
    program.discard()
