"""Tables that are looked up: streamed by the row, bit for bit, and never read whole into memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from logits import UBATCH_POSITIONS, LogitsProgram, difference
from memory_cgroup import memory_limit
from models import Model
from programs import BACKEND, OFF, REPOSITORY, STOCK_BIN, complete

# Rows that a token looks up: its own, or one for each hash of the last tokens.
ROWS_PER_TOKEN = {"gemma4": 1, "gemma3n": 1, "qwen4exp": 4}

# Whose table llama.cpp maps with --lazy-mode on.
LAZILY_MAPPED = ("gemma4", "qwen4exp")

# A table of half a GiB, in a limit that leaves room for the rest of the program.
TABLE_BYTES = 512 << 20
LIMIT_BYTES = 320 << 20


def make(script: str, *arguments: Path | str) -> None:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, REPOSITORY / "scripts" / "models" / script, *map(str, arguments)], check=True, env=environment)


@pytest.fixture(scope="module", params=ROWS_PER_TOKEN)
def model(request, tmp_path_factory) -> Model:
    directory = tmp_path_factory.mktemp("tables")
    make("arch_models.py", directory, request.param)
    return Model(request.param, directory / f"{request.param}.gguf")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Nearly all of the file is a table of n-gram embeddings."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    make("make_table.py", path, "--bytes", str(TABLE_BYTES))
    yield path
    path.unlink()


@pytest.mark.parametrize(("mode", "positions"), [("single", 64), ("parallel", 64), ("ubatch", UBATCH_POSITIONS)])
def test_rows_are_equal_bit_for_bit(logits: LogitsProgram, model: Model, mode: str, positions: int) -> None:
    budget_bytes = logits.smallest_budget(model)
    resident = logits.resident(model, mode, positions)
    streamed, stats = logits.streamed(model, mode, positions, budget_bytes)
    assert difference(resident, streamed, positions) is None
    assert stats["rows"] == positions * ROWS_PER_TOKEN[model.name]
    assert stats["row_reads"] > 0 and stats["errors"] == 0
    assert stats["row_reads_ahead"] > 0, "rows follow from the tokens, so they are known before anything is computed"
    assert stats["budget_bytes"] <= budget_bytes
    assert stats["tokens"] == positions


def test_with_room_every_row_is_read_before_its_lookup(logits: LogitsProgram, model: Model) -> None:
    _, stats = logits.streamed(model, "ubatch", UBATCH_POSITIONS, 64 << 20)
    assert stats["row_reads_ahead"] == stats["row_reads"] > 0


@pytest.mark.parametrize("lazy", ["off", "on"])
def test_without_the_patches_rows_are_streamed_or_a_line_says_why_not(model: Model, lazy: str, tmp_path) -> None:
    is_ours = lazy == "off" or model.name not in LAZILY_MAPPED
    stats_path = tmp_path / "stats.json"
    settings = {"GGML_BACKEND_PATH": str(BACKEND), "HYPURA": "stream", "HYPURA_RAM": "8M", "HYPURA_VERIFY": "1"}
    flags = {"program": STOCK_BIN / "llama-completion", "tokens": 8}
    resident = complete(model.path, {}, tmp_path, **flags).succeeded()
    settings["HYPURA_STATS"] = str(stats_path)
    streamed = complete(model.path, settings, tmp_path, "--lazy-mode", lazy, **flags).succeeded()
    stats = json.loads(stats_path.read_text())
    assert streamed.output == resident.output
    assert stats["errors"] == 0 and stats["read_bytes"] > 0
    assert (stats["rows"] > 0) == is_ours
    assert ("per_layer_token_embd.weight is not streamed by the row" in streamed.log) != is_ours


def test_a_table_that_is_larger_than_the_limit_is_no_hindrance(large: Path, tmp_path) -> None:
    """Nothing is set: what does not fit is found to be a table, and the rest stays in memory."""
    resident = complete(large, OFF, tmp_path, tokens=12).succeeded()
    assert TABLE_BYTES > 1.5 * LIMIT_BYTES
    with memory_limit(LIMIT_BYTES) as through:
        streamed = complete(large, {}, tmp_path, tokens=12, through=through).succeeded()
        stock = complete(large, OFF, tmp_path, "--load-mode", "none", "--lazy-mode", "off", tokens=12, through=through)
    assert streamed.output == resident.output
    assert "streaming: " in streamed.log
    assert streamed.peak_bytes <= LIMIT_BYTES
    assert stock.status < 0, "the limit is none: what reads the table into memory lives"
