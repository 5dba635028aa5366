"""Fixtures of the tests that need a machine with a GPU; the rest is that of the end-to-end tests."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from logits_fixtures import logits, text_file  # noqa: E402, F401
from programs import run  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def device(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a GPU all would be compared with itself."""
    listed = run("llama-completion", ["--list-devices"], {}, tmp_path_factory.mktemp("devices")).succeeded().output
    if not re.search(r"^ +(?!Hypura)\w+:", listed, re.MULTILINE):
        pytest.fail(f"no GPU; llama-completion --list-devices says: {listed}")
