"""What a pass uses, and what is only in the file; what llama.cpp's user says about either."""

import re

import pytest

from logits import LogitsProgram
from models import tiny
from programs import complete


def test_a_layer_that_drafts_and_is_not_loaded_takes_no_part(logits: LogitsProgram) -> None:
    """It is in the file, but has no slots, is not read, and does not stand between a token's last layer and the next one's first."""
    model = tiny("drafting")
    in_file = sum(int(tensor.n_bytes) for tensor in model.tensors if "_exps" in tensor.name)
    assert model.streamable_bytes == in_file * 3 // 4
    # So much that all would have slots, if it took part; slots are some pages larger than what they hold.
    _, stats = logits.streamed(model, "single", 96, 2 * in_file, HYPURA_PREFETCH="on")
    assert stats["budget_bytes"] <= 1.3 * model.streamable_bytes
    assert stats["plan"]["ram_bytes"] + stats["plan"]["drive_bytes"] <= sum(int(tensor.n_bytes) for tensor in model.loaded)
    # What has a slot is read once, and the layer that is not loaded never.
    assert stats["read_bytes"] <= model.streamable_bytes


def test_a_token_of_a_looped_model_counts_once_and_nothing_is_read_in_vain(logits: LogitsProgram) -> None:
    model = tiny("looped")
    positions = 96
    budget_bytes = max(model.streamable_bytes // 3, logits.smallest_budget(model))
    _, stats = logits.streamed(model, "single", positions, budget_bytes)
    assert stats["tokens"] == positions
    # Two loops read what has no slot twice, and not more often; reads are widened to whole pages.
    assert stats["read_bytes"] <= 1.05 * 2 * positions * model.streamable_bytes
    assert stats["prefetch_used"] > 0.9 * stats["prefetch_issued"] > positions


@pytest.mark.parametrize(("flags", "used"), [((), 2), (("--override-kv", "llama.expert_used_count=int:3"), 3)])
def test_the_plan_goes_by_the_experts_that_are_used(flags: tuple[str, ...], used: int, tmp_path) -> None:
    """With too little memory for a token's experts, the log says what would do: in proportion to how many are used."""
    model = tiny("mixtral")
    settings = {"HYPURA": "stream", "HYPURA_RAM": "600K"}
    finished = complete(model.path, settings, tmp_path, *flags, tokens=4).succeeded()
    needed = re.search(r"is less than one token uses.*from (\d+\.\d+) MiB on", finished.log)
    assert needed, finished.log
    per_expert = 3 * 3 * (14 << 12)
    assert float(needed.group(1)) == pytest.approx(used * per_expert / (1 << 20), rel=0.15)


@pytest.mark.parametrize(
    ("flags", "tokens"), [((), 2048), (("-ub", "512"), 512), (("-ub", "256"), 256)], ids=["default", "512", "256"]
)
def test_a_micro_batch_that_was_asked_for_is_left_as_it_is(flags: tuple[str, ...], tokens: int, tmp_path) -> None:
    """Also when it is what llama.cpp takes by itself, which is made larger while weights are streamed."""
    settings = {"HYPURA": "stream"}
    finished = complete(tiny("mixtral").path, settings, tmp_path, "-c", "4096", "-v", *flags, tokens=2).succeeded()
    # The first context, where there are two, is one in which llama.cpp measures memory.
    found = re.findall(r"n_ubatch += (\d+)", finished.log)
    assert found and int(found[-1]) == tokens, finished.log
