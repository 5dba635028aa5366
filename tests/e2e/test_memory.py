"""Streaming stays within its memory: what HYPURA_RAM promises, and what a cgroup enforces.

The model is large enough (1.4 GB) that the fixed cost of a program is small beside it.
"""

import json

import pytest

from memory_cgroup import memory_limit
from models import Model
from programs import COMPARABLE, OFF, complete, run

ALLOWANCE_BYTES = 200_000_000


@pytest.fixture(scope="module")
def resident_text(wide_moe: Model, tmp_path_factory) -> str:
    return complete(wide_moe.path, OFF, tmp_path_factory.mktemp("resident")).succeeded().output


@pytest.mark.parametrize("budget_mebibytes", [64, 256, 640])
def test_peak_memory_is_the_budget_and_the_rest_of_the_model(
    wide_moe: Model, resident_text: str, budget_mebibytes: int, tmp_path
) -> None:
    stats = tmp_path / "stats.json"
    settings = {"HYPURA": "stream", "HYPURA_RAM": f"{budget_mebibytes}M", "HYPURA_STATS": str(stats)}
    streamed = complete(wide_moe.path, settings, tmp_path).succeeded()
    assert streamed.output == resident_text
    budget_bytes = budget_mebibytes << 20
    assert streamed.peak_bytes <= wide_moe.other_bytes + budget_bytes + ALLOWANCE_BYTES
    assert streamed.peak_bytes < 0.75 * wide_moe.path.stat().st_size
    figures = json.loads(stats.read_text())
    assert figures["budget_bytes"] <= budget_bytes
    assert figures["read_bytes"] > 0


def test_peak_memory_of_a_long_prompt(wide_moe: Model, text_file, tmp_path) -> None:
    """A micro-batch of 512 tokens uses every expert of every layer, and still no more than the budget."""
    settings = {"HYPURA": "stream", "HYPURA_RAM": "128M"}
    arguments = ["-m", wide_moe.path, *COMPARABLE, "-c", "1024", "-n", "2", "--temp", "0", "-no-cnv", "-f", text_file]
    streamed = run("llama-completion", arguments, settings, tmp_path).succeeded()
    assert streamed.peak_bytes <= wide_moe.other_bytes + (128 << 20) + ALLOWANCE_BYTES


@pytest.mark.parametrize("flags", [COMPARABLE, []], ids=["no repacking", "default flags"])
def test_in_a_memory_cgroup_smaller_than_the_model_nothing_has_to_be_set(
    wide_moe: Model, resident_text: str, flags: list[str], tmp_path
) -> None:
    """No HYPURA variable at all: the limit is found, the model is streamed within it, and the user is told."""
    limit_bytes = 900 << 20
    assert limit_bytes < 0.7 * wide_moe.path.stat().st_size
    with memory_limit(limit_bytes) as through:
        streamed = complete(wide_moe.path, {}, tmp_path, flags=flags, through=through).succeeded()
    assert "expert-streaming: " in streamed.log
    assert streamed.peak_bytes <= limit_bytes
    if flags:
        assert streamed.output == resident_text
    else:
        assert len(streamed.output.strip()) > 10
