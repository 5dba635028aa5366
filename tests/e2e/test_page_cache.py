"""What the page cache holds already serves as it is: right bytes, no reading, and the pages stay for those who put them there."""

import pytest

from logits import LogitsProgram, difference
from models import SMOLLM2_MOE, Model, tiny
from page_cache import bring_in, cached_share

POSITIONS = 16


def cases():
    """Model, share of its files. What of a tiny file or a small tensor is not there the kernel reads ahead while others are loaded."""
    for model in (tiny("mixtral"), tiny("dense-mixed"), tiny("split3"), SMOLLM2_MOE):
        for share in (0.5, 1.0) if model is SMOLLM2_MOE else (1.0,):
            yield pytest.param(model, share, id=f"{model.name}-{share:.0%}")


@pytest.mark.parametrize(("io", "direct"), [("auto", "auto"), ("threads", "off")])
@pytest.mark.parametrize(("model", "share"), cases())
def test_what_is_in_the_page_cache_is_copied_and_stays(logits: LogitsProgram, model: Model, share: float, io: str, direct: str) -> None:
    resident = logits.resident(model, "single", POSITIONS)
    budget_bytes = max(model.streamable_bytes // 4, logits.smallest_budget(model))
    for file in model.files:
        bring_in(file, share)
    # Comparing with the file would bring it in.
    settings = {"HYPURA_DIRECT": direct, "HYPURA_IO": io, "HYPURA_VERIFY": "0"}
    streamed, stats = logits.streamed(model, "single", POSITIONS, budget_bytes, **settings)
    assert difference(resident, streamed, POSITIONS) is None
    if share == 1.0:
        # The system may take back some meanwhile.
        assert stats["page_cache_bytes"] >= 0.95 * stats["read_bytes"] > 0
        assert all(cached_share(file) > 0.99 for file in model.files), "pages of others are not ours to drop"
    else:
        assert 0 < stats["page_cache_bytes"] < stats["read_bytes"]


def test_the_drive_is_read_all_the_same_where_that_is_asked_for(logits: LogitsProgram) -> None:
    model = tiny("mixtral")
    for setting in ("cold", "on"):
        bring_in(model.path)
        _, stats = logits.streamed(model, "single", POSITIONS, model.streamable_bytes // 2, HYPURA_DIRECT=setting)
        assert stats["page_cache_bytes"] == 0 < stats["read_bytes"], setting
