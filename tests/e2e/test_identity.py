"""Streaming changes no bit: the logits of every position equal those of the same build with everything in memory.

Both run the same kernels (no repacking), so nothing but equality is right; one misplaced or stale expert shows.
"""

import shutil

import gguf
import pytest

from conftest import require
from logits import MODES, UBATCH_POSITIONS, LogitsProgram, difference, position_count
from models import SMOLLM2, SMOLLM2_MOE, TINY, TRAINED_MOE, Model, tiny
from programs import OFF

REAL = (SMOLLM2, SMOLLM2_MOE, TRAINED_MOE)
SHARES = (0.1, 0.4, 0.95)
SMALLEST = 0.0


def cases():
    """Model, mode, share of the streamable bytes.

    The smallest budget is two slots, so that a micro-batch needs more experts than there are slots even in a model that has
    few experts in a layer. On the real models that takes too long with one token at a time.
    """
    for model in (*TINY, *REAL):
        for mode in MODES:
            shares = SHARES if model in REAL and mode != "ubatch" else (SMALLEST, *SHARES)
            for share in shares:
                name = f"{share:.0%}" if share else "smallest"
                yield pytest.param(model, mode, share, id=f"{model.name}-{mode}-{name}")


@pytest.mark.parametrize(("model", "mode", "share"), cases())
def test_logits_are_equal_bit_for_bit(logits: LogitsProgram, model: Model, mode: str, share: float) -> None:
    """Resident against streamed with a share of the streamable bytes as budget, every acquired range verified."""
    require(model)
    positions = position_count(model, mode)
    budget_bytes = max(int(share * model.streamable_bytes), logits.smallest_budget(model))
    resident = logits.resident(model, mode, positions)
    streamed, stats = logits.streamed(model, mode, positions, budget_bytes)
    assert difference(resident, streamed, positions) is None

    # The figures prove that this was a comparison with streaming at all.
    assert stats["mode"] == model.streaming_mode
    assert stats["errors"] == 0
    assert stats["tokens"] == positions
    assert 0 < stats["budget_bytes"] <= budget_bytes
    assert stats["resident_bytes"] <= stats["budget_bytes"]
    assert share > 0.5 or stats["read_bytes"] > stats["budget_bytes"], "all that was needed fitted into the slots"
    if model.has_experts:
        assert stats["expert_misses"] > 0
    if model.has_experts and mode == "ubatch" and share == SMALLEST:
        largest = max(int(tensor.n_bytes) for tensor in model.streamable)
        assert stats["budget_bytes"] < largest, "the experts of one matrix fit into the slots at once"


def test_the_comparison_sees_one_changed_bit_in_each_expert(logits: LogitsProgram, tmp_path) -> None:
    """The comparison itself: weights that are nearly right do not pass it."""
    model = tiny("mixtral")
    changed = Model("changed", tmp_path / "changed.gguf")
    shutil.copyfile(model.path, changed.path)
    tensor = next(t for t in gguf.GGUFReader(changed.path).tensors if t.name == "blk.1.ffn_up_exps.weight")
    experts = int(tensor.shape[-1])
    with changed.path.open("r+b") as file:
        for expert in range(experts):
            # the last byte of a Q4_0 block holds two of its values
            offset = int(tensor.data_offset + (expert + 1) * tensor.n_bytes // experts - 1)
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
    resident = logits.resident(model, "ubatch", UBATCH_POSITIONS)
    output = tmp_path / "logits"
    logits.run(changed.path, "ubatch", UBATCH_POSITIONS, OFF, output).succeeded()
    assert difference(resident, output, UBATCH_POSITIONS)


@pytest.mark.parametrize(("mode", "share"), [("single", SMALLEST), ("single", 0.95), ("ubatch", 0.3)])
@pytest.mark.parametrize("model", [*TINY, SMOLLM2], ids=lambda model: model.name)
def test_every_kind_of_tensor_can_be_streamed(logits: LogitsProgram, model: Model, mode: str, share: float) -> None:
    """Attention and shared experts as well, which are streamed only when the rest does not fit."""
    require(model)
    everything = {"HYPURA_TENSORS": "all"}
    positions = position_count(model, mode)
    budget_bytes = max(int(share * model.all_streamable_bytes), logits.smallest_budget(model, **everything))
    resident = logits.resident(model, mode, positions)
    streamed, stats = logits.streamed(model, mode, positions, budget_bytes, **everything)
    assert difference(resident, streamed, positions) is None
    assert 0 < stats["budget_bytes"] <= budget_bytes
    assert model.all_streamable_bytes > model.streamable_bytes


@pytest.mark.parametrize("share", [SMALLEST, 0.3, 0.95], ids=lambda share: f"{share:.0%}")
@pytest.mark.parametrize("model", [*TINY, *REAL], ids=lambda model: model.name)
def test_looking_ahead_changes_no_bit_while_reads_arrive_late(logits: LogitsProgram, model: Model, share: float) -> None:
    """Acting on every prediction, with reads that are held back at random."""
    require(model)
    positions = 96
    settings = {"HYPURA_PREFETCH": "on", "HYPURA_TEST_DELAY": str(1 + len(model.name))}
    budget_bytes = max(int(share * model.streamable_bytes), logits.smallest_budget(model))
    streamed, stats = logits.streamed(model, "single", positions, budget_bytes, **settings)
    assert difference(logits.resident(model, "single", positions), streamed, positions) is None
    assert stats["errors"] == 0
    assert stats["prefetch_issued"] > 0 or share == SMALLEST or not model.has_experts


@pytest.mark.parametrize("model", [tiny("mixtral"), tiny("many-experts"), tiny("gptoss"), SMOLLM2_MOE], ids=lambda model: model.name)
def test_a_warm_start_changes_no_bit_while_reads_arrive_late(logits: LogitsProgram, model: Model, tmp_path) -> None:
    """The second run reads what the first one used much, while its own demands come in."""
    require(model)
    positions = 96
    settings = {"HYPURA_PREFETCH": "on", "HYPURA_TEST_DELAY": str(1 + len(model.name)), "XDG_CACHE_HOME": str(tmp_path)}
    budget_bytes = max(int(0.5 * model.streamable_bytes), logits.smallest_budget(model))
    for is_warm in (False, True):
        streamed, stats = logits.streamed(model, "single", positions, budget_bytes, **settings)
        assert difference(logits.resident(model, "single", positions), streamed, positions) is None
        assert stats["errors"] == 0
        assert (stats["warm_reads"] > 0) == is_warm


SETTINGS = [{"HYPURA_DIRECT": "off"}, {"HYPURA_PREFETCH": "off"}, {"HYPURA_IO": "threads"}, {"HYPURA_IO": "uring"}]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize(
    "model", [tiny("gptoss"), tiny("dense-mixed"), tiny("split3"), SMOLLM2, SMOLLM2_MOE], ids=lambda model: model.name
)
def test_settings_change_no_bit(logits: LogitsProgram, model: Model, setting: dict[str, str]) -> None:
    """The ways of reading are equal in outcome."""
    budget_bytes = max(model.streamable_bytes // 10, logits.smallest_budget(model))
    streamed, stats = logits.streamed(model, "parallel", 96, budget_bytes, **setting)
    assert difference(logits.resident(model, "parallel", 96), streamed, 96) is None
    if "HYPURA_DIRECT" in setting:
        assert stats["direct_io"] is False
    if "HYPURA_IO" in setting:
        if stats["io_engine"] == "threads" != setting["HYPURA_IO"]:
            pytest.skip("io_uring is not to be had here (many containers forbid it); the threads stood in")
        assert stats["io_engine"] == setting["HYPURA_IO"]
    if "HYPURA_PREFETCH" in setting:
        assert stats["prefetch_issued"] == 0
