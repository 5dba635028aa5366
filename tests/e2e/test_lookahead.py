"""Looking ahead names what the next layer uses, however its router works.

A quiet model's layers add next to nothing to the residual: what one layer's router gets is what the next one gets, so a right look-ahead
names nearly all of the next layer's experts, and one that takes the model for another names about half.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models import DIRECTORY
from programs import REPOSITORY, complete

# Routers with a norm of their own, by the square root of softplus with a bias, of latent experts (two), after a norm without a name of its
# own; then norms of other names, with biases, behind a residual that is normalised; a bias without its suffix; Qwen's.
MODELS = (
    "gemma4-moe",
    "deepseek4",
    "kimi-k3",
    "nemotron-3-super",
    "nemotron_h_moe",
    "arctic",
    "dbrx",
    "cohere2moe",
    "phimoe",
    "minimax-01",
    "hy_v3",
    "qwen2moe",
)
UNUSED_NEXTN = "glm4moe"
SHARE = 0.5


def quiet(name: str) -> Path:
    """A tiny quiet model, made once and kept."""
    path = DIRECTORY / "quiet" / f"{name}-quiet.gguf"
    if not path.exists():
        draft = path.parent / str(os.getpid())
        script = REPOSITORY / "scripts" / "models" / "arch_models.py"
        subprocess.run([sys.executable, script, "--quiet", draft, name], check=True)
        (draft / path.name).rename(path)
        draft.rmdir()
    return path


def looked_ahead(name: str, scratch: Path) -> dict:
    """The statistics of a short text, all that is foreseen being read."""
    model, stats = quiet(name), scratch / "stats.json"
    settings = {
        "HYPURA": "stream",
        "HYPURA_RAM": str(int(SHARE * model.stat().st_size)),
        "HYPURA_PREFETCH": "on",
        "HYPURA_STATS": str(stats),
    }
    complete(model, settings, scratch, "--ignore-eos", tokens=64).succeeded()
    return json.loads(stats.read_text())


@pytest.mark.parametrize("name", MODELS)
def test_a_quiet_models_next_layer_is_named(name: str, tmp_path) -> None:
    stats = looked_ahead(name, tmp_path)
    assert stats["errors"] == 0
    assert stats["lookahead_coverage"], "no router was asked"
    assert stats["lookahead_recall"] >= 0.95


def test_nothing_is_guessed_for_a_layer_that_no_pass_uses(tmp_path) -> None:
    """The layer in the file that would predict one token more."""
    stats = looked_ahead(UNUSED_NEXTN, tmp_path)
    assert stats["errors"] == 0
    assert stats["lookahead_recall"] >= 0.95
    assert stats["prefetch_used"] > 0
    assert stats["prefetch_wasted"] + stats["prefetch_cancelled"] <= 0.02 * stats["prefetch_issued"]
