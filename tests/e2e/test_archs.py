"""Streaming changes no bit in any of llama.cpp's mixture architectures, nor in models whose weights are used in unusual ways.

`make test-archs` tries them all; otherwise those that are most unlike each other.
"""

import os

import pytest

from conftest import require_built
from logits import EMBEDDINGS, LogitsProgram, difference
from models import EXPERT, Model, architecture
from programs import REPOSITORY

from archs.spec import ARCHITECTURES
from archs.survey import mixture_architectures
from tiny_shapes import SHAPES

ALL = os.environ.get("HYPURA_TEST_ARCHS") == "all"
UNLIKE = ("gemma4", "gemma4-moe", "deepseek4", "kimi-k3", "nemotron_h_moe", "qwen4exp", "grovemoe", "k2-horizon", "glm-dsa")
UNLIKE += ("hrm_text", "mamba2", "t5")
NAMES = tuple(ARCHITECTURES) if ALL else UNLIKE

POSITIONS = {"single": 48, "ubatch": 192, EMBEDDINGS: 192}
SHARES = {"smallest": 0.0, "40%": 0.4}

# Mixtures that cannot run alone.
DRAFTS = {"dflash": "drafts for another model, whose states it reads while that one computes"}


def test_every_mixture_architecture_of_the_tree_has_a_tiny_model() -> None:
    """A new version of llama.cpp shows here what is missing: describe it in scripts/models/archs."""
    mixtures = mixture_architectures(REPOSITORY / "build" / "llama-src")
    described = {model.architecture for model in ARCHITECTURES.values()} | {make().architecture for make in SHAPES.values()}
    assert not set(mixtures) - described - set(DRAFTS), "mixture architectures without a tiny model"
    assert set(DRAFTS) <= set(mixtures), "an exception that is none any more"


@pytest.mark.skipif(not ALL, reason="only with make test-archs, which makes all models")
def test_every_graph_with_experts_runs_with_experts() -> None:
    """Not only a dense model of an architecture that may have experts."""
    mixtures = mixture_architectures(REPOSITORY / "build" / "llama-src")
    with_experts = {make().architecture for make in SHAPES.values()} | {"graniteswitch"}  # whose stacks are adapters
    for name, described in ARCHITECTURES.items():
        if any(EXPERT.fullmatch(tensor.name) for tensor in architecture(name).tensors):
            with_experts.add(described.architecture)
    graphs = {mixtures[name] for name in with_experts & set(mixtures)}
    assert not {graph for name, graph in mixtures.items() if name not in DRAFTS} - graphs


def cases():
    for name in NAMES:
        modes = (EMBEDDINGS,) if ARCHITECTURES[name].encoder else ("single", "ubatch")
        for mode in modes:
            for tensors in ("auto", "all"):
                for share_name, share in SHARES.items():
                    if tensors == "all" and share:
                        continue
                    yield pytest.param(architecture(name), mode, tensors, share, id=f"{name}-{mode}-{tensors}-{share_name}")


@pytest.mark.parametrize(("model", "mode", "tensors", "share"), cases())
def test_logits_are_equal_bit_for_bit(logits: LogitsProgram, model: Model, mode: str, tensors: str, share: float) -> None:
    """Resident against streamed, every acquired range verified."""
    require_built(model)
    settings = {"HYPURA_TENSORS": tensors}
    positions = POSITIONS[mode]
    smallest = logits.smallest_budget(model, **settings)
    budget_bytes = max(int(share * model.streamable_bytes), smallest)
    resident = logits.resident(model, mode, positions)
    streamed, stats = logits.streamed(model, mode, positions, budget_bytes, **settings)
    assert difference(resident, streamed, positions) is None
    assert stats["errors"] == 0
    assert stats["mode"] == model.streaming_mode
    assert stats["resident_bytes"] <= stats["budget_bytes"] <= budget_bytes
    assert share or stats["read_bytes"] > stats["budget_bytes"], "all that was needed fitted into the slots"
