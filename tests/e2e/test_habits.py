"""A model that has run before starts warmer: what it used much is in memory when it is asked for."""

import json
from pathlib import Path

import pytest

from conftest import require
from models import SMOLLM2_MOE, TRAINED_MOE, Model
from programs import complete

TOKENS = 32
SHARE = 0.4


def run(model: Model, cache: Path, scratch: Path) -> tuple[str, dict]:
    """The text after a prompt, and the statistics of the run."""
    stats = scratch / "stats.json"
    settings = {
        "HYPURA": "stream",
        "HYPURA_RAM": str(int(SHARE * model.streamable_bytes)),
        "HYPURA_STATS": str(stats),
        "XDG_CACHE_HOME": str(cache),
    }
    text = complete(model.path, settings, scratch, "--ignore-eos", tokens=TOKENS).succeeded().output
    return text, json.loads(stats.read_text())


@pytest.mark.parametrize("model", [TRAINED_MOE, SMOLLM2_MOE], ids=lambda model: model.name)
def test_a_second_run_of_the_same_prompt_misses_less(model: Model, tmp_path) -> None:
    require(model)
    cache = tmp_path / "cache"
    (first_text, first), (second_text, second) = (run(model, cache, tmp_path) for _ in range(2))
    assert first_text == second_text
    assert first["warm_reads"] == 0 < second["warm_reads"]
    assert first["expert_hits"] + first["expert_misses"] == second["expert_hits"] + second["expert_misses"]
    assert second["expert_misses"] < first["expert_misses"]
    assert len(list((cache / "hypura").glob("habits-*.bin"))) == 1
