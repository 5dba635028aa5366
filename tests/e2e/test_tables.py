"""Tables that are looked up: streamed by the row, bit for bit."""

import os
import subprocess
import sys

import pytest

from logits import UBATCH_POSITIONS, LogitsProgram, difference
from models import Model
from programs import REPOSITORY


@pytest.fixture(scope="module", params=["gemma4", "gemma3n"])
def model(request, tmp_path_factory) -> Model:
    directory = tmp_path_factory.mktemp("tables")
    script = REPOSITORY / "scripts" / "models" / "arch_models.py"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, script, directory, request.param], check=True, env=environment)
    return Model(request.param, directory / f"{request.param}.gguf")


@pytest.mark.parametrize(("mode", "positions"), [("single", 64), ("parallel", 64), ("ubatch", UBATCH_POSITIONS)])
def test_rows_are_equal_bit_for_bit(logits: LogitsProgram, model: Model, mode: str, positions: int) -> None:
    budget_bytes = logits.smallest_budget(model)
    resident = logits.resident(model, mode, positions)
    streamed, stats = logits.streamed(model, mode, positions, budget_bytes)
    assert difference(resident, streamed, positions) is None
    assert stats["rows"] == positions
    assert stats["row_reads"] > 0 and stats["errors"] == 0
    assert stats["budget_bytes"] <= budget_bytes
    assert stats["tokens"] == positions
