"""What the page cache holds already serves as it is: right bytes, no reading, and the pages stay for those who put them there."""

import pytest

from logits import LogitsProgram, difference
from models import SMOLLM2_MOE, Model, tiny
from page_cache import bring_in, cached_share, locked

POSITIONS = 16
MODES = pytest.mark.parametrize(("io", "direct"), [("auto", "auto"), ("threads", "off")])


def streamed(logits: LogitsProgram, model: Model, io: str, direct: str) -> dict:
    """The statistics of a run whose logits are those of the resident model."""
    resident = logits.resident(model, "single", POSITIONS)
    budget_bytes = max(model.streamable_bytes // 4, logits.smallest_budget(model))
    # Comparing with the file would bring it in.
    settings = {"HYPURA_DIRECT": direct, "HYPURA_IO": io, "HYPURA_VERIFY": "0"}
    found, stats = logits.streamed(model, "single", POSITIONS, budget_bytes, **settings)
    assert difference(resident, found, POSITIONS) is None
    return stats


@MODES
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_is_in_the_page_cache_is_copied(logits: LogitsProgram, share: float, io: str, direct: str) -> None:
    logits.smallest_budget(SMOLLM2_MOE)  # reads the file, too
    with locked(SMOLLM2_MOE.path, share):
        stats = streamed(logits, SMOLLM2_MOE, io, direct)
    assert min(stats["page_cache_bytes"], stats["read_bytes"]) > 0
    # Of what is not locked any share may be there: llama.cpp's loader reads what stays resident, and the kernel reads on, by megabytes.
    if share == 1.0:
        assert stats["page_cache_bytes"] >= stats["read_bytes"]


@MODES
@pytest.mark.parametrize("model", [tiny("mixtral"), tiny("dense-mixed"), tiny("split3")], ids=lambda model: model.name)
def test_what_is_in_the_page_cache_stays(logits: LogitsProgram, model: Model, io: str, direct: str) -> None:
    """Pages of others are not ours to drop. Reading drops nearly all; what the system itself takes back of an idle file is less than half."""
    logits.smallest_budget(model)
    for file in model.files:
        bring_in(file)
    stats = streamed(logits, model, io, direct)
    assert stats["page_cache_bytes"] > stats["read_bytes"] / 2 > 0
    assert all(cached_share(file) > 0.5 for file in model.files)


def test_the_drive_is_read_all_the_same_where_that_is_asked_for(logits: LogitsProgram) -> None:
    model = tiny("mixtral")
    for setting in ("cold", "on"):
        bring_in(model.path)
        _, stats = logits.streamed(model, "single", POSITIONS, model.streamable_bytes // 2, HYPURA_DIRECT=setting)
        assert stats["page_cache_bytes"] == 0 < stats["read_bytes"], setting
