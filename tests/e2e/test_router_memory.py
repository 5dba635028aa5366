"""The routers that look ahead are kept as single floats beside the slots: their memory comes off the budget, or they are not kept."""

import json
import sys
from pathlib import Path

import pytest

from programs import OFF, REPOSITORY, Finished, complete

sys.path.insert(0, str(REPOSITORY / "scripts" / "models"))
import tiny_models  # noqa: E402
import tiny_shapes  # noqa: E402
from gguf import GGMLQuantizationType as Type  # noqa: E402
from tiny_layers import TinyModel, Width  # noqa: E402

LAYERS, EXPERTS, EMBEDDING = 8, 512, 1024
# Of all layers but the first.
ROUTERS_BYTES = (LAYERS - 1) * EXPERTS * EMBEDDING * 4
AMPLE, SHORT = 128 << 20, 64 << 20
# Long enough that what it uses fills either budget.
PROMPT = "The capital of Norway is " * 16


def wide_routers() -> TinyModel:
    """Experts as small as they can be behind routers that are large: 15 MB of routers, 240 MB of experts."""
    width = Width(embedding=EMBEDDING, heads=2, kv_heads=1, head=32)
    return tiny_shapes.qwen3_moe(width, experts=EXPERTS, used=4, hidden=32, layers=LAYERS, type_=Type.Q4_0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide-routers") / "wide-routers.gguf"
    tiny_models.write_model("wide-routers", wide_routers(), path, seed=1)
    return path


def stream(model: Path, budget_bytes: int, prefetch: str, scratch: Path) -> tuple[Finished, dict]:
    stats = scratch / f"stats-{prefetch}.json"
    settings = {"HYPURA": "stream", "HYPURA_RAM": str(budget_bytes), "HYPURA_PREFETCH": prefetch, "HYPURA_STATS": str(stats)}
    finished = complete(model, settings, scratch, "--ignore-eos", prompt=PROMPT, tokens=24).succeeded()
    return finished, json.loads(stats.read_text())


def test_routers_come_off_the_budget(model: Path, tmp_path: Path) -> None:
    resident = complete(model, OFF, tmp_path, "--ignore-eos", prompt=PROMPT, tokens=24).succeeded()
    with_routers, ahead = stream(model, AMPLE, "on", tmp_path)
    without, plain = stream(model, AMPLE, "off", tmp_path)
    assert with_routers.output == without.output == resident.output
    assert ahead["lookahead_coverage"] and not plain["lookahead_coverage"]
    assert ahead["budget_bytes"] <= AMPLE - ROUTERS_BYTES < plain["budget_bytes"]
    # Slots that are read into are touched: as many of them as the routers take are not there. What else looking ahead takes is small.
    assert with_routers.peak_bytes <= without.peak_bytes + ROUTERS_BYTES // 2


def test_a_short_budget_is_left_to_the_experts(model: Path, tmp_path: Path) -> None:
    resident = complete(model, OFF, tmp_path, "--ignore-eos", prompt=PROMPT, tokens=24).succeeded()
    finished, stats = stream(model, SHORT, "on", tmp_path)
    assert finished.output == resident.output
    assert not stats["lookahead_coverage"] and stats["budget_bytes"] > SHORT - ROUTERS_BYTES
