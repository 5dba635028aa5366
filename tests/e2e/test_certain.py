"""Experts that follow from the tokens (deepseek4's first layers) are read before their layer is computed, with no guess and no trial."""

import pytest

from conftest import require_built
from logits import LogitsProgram, difference
from models import Model, architecture


@pytest.fixture(scope="module")
def model() -> Model:
    model = architecture("deepseek4")
    require_built(model)
    return model


@pytest.mark.parametrize(("mode", "positions"), [("single", 48), ("parallel", 48), ("ubatch", 192)])
@pytest.mark.parametrize("share", [0.0, 0.6], ids=["smallest", "60%"])
def test_no_layer_waits_for_want_of_knowing(logits: LogitsProgram, model: Model, mode: str, positions: int, share: float) -> None:
    budget_bytes = max(int(share * model.streamable_bytes), logits.smallest_budget(model))
    resident = logits.resident(model, mode, positions)
    streamed, stats = logits.streamed(model, mode, positions, budget_bytes)
    assert difference(resident, streamed, positions) is None
    assert stats["certain_unknown"] == 0, stats
    assert stats["certain_reads"] >= stats["certain_used"] > 0, stats
    assert stats["certain_bytes"] > 0
    assert stats["certain_stall_seconds"] <= stats["stall_seconds"]
    assert stats["errors"] == 0
    if share and mode == "single":
        # Where there is room for what a token uses, little that was known has lost its slot to another layer by its turn.
        assert stats["certain_without_room"] * 10 < stats["certain_used"], stats


def test_what_is_certain_needs_no_trial_and_is_told_apart_from_guesses(logits: LogitsProgram, model: Model) -> None:
    _, stats = logits.streamed(model, "single", 48, int(0.6 * model.streamable_bytes))
    _, without = logits.streamed(model, "single", 48, int(0.6 * model.streamable_bytes), HYPURA_PREFETCH="off")
    assert stats["certain_reads"] > 0
    assert without["certain_reads"] == without["certain_used"] == without["prefetch_issued"] == 0
    assert without["certain_unknown"] > 0, "with nothing read ahead, layers do wait for what could have been known"
