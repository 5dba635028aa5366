"""Streaming changes no bit on a real GPU, wherever llama.cpp and libhypura put weights: `make test-gpu`.

Results are compared with those of the same flags and `HYPURA=off`. Only where VRAM holds streamed experts, which the GPU then computes for
up to 8 tokens, are those of stock with all of that on the GPU the ones to have.
"""

import re
from operator import attrgetter
from pathlib import Path

import pytest
from logits import LogitsProgram, difference
from models import Model, tiny
from programs import COMPARABLE, OFF, Finished, complete, run

MODELS = [tiny(name) for name in ("mixtral", "many-experts", "qwen3moe", "gptoss", "dense-mixed")]
ALL_ON_GPU = ("99",)
EXPERTS_ON_CPU = ("99", "ffn_(gate|up|down)_exps")
FFN_ON_CPU = ("99", r"ffn_(gate|up|down)(_exps)?\.weight")
PLACES = [("0",), ("1",), ALL_ON_GPU, EXPERTS_ON_CPU, FFN_ON_CPU]
RAM_SHARES = (0.1, 0.3, 0.6)
# Of what can be streamed. With less than a token's experts nothing is held in VRAM.
VRAM_SHARES = (0.0, 0.3, 2.0)
# A micro-batch of 512 and one of 64; one token at a time.
POSITIONS = {"ubatch": 512 + 64, "single": 48}
NAME = attrgetter("name")


class Gpu:
    """Logits of this machine."""

    def __init__(self, program: LogitsProgram, scratch: Path) -> None:
        self.program, self.scratch = program, scratch

    def run(self, model: Model, mode: str, place: tuple[str, ...], settings: dict[str, str], output: Path) -> Finished:
        arguments = [model.path, mode, str(POSITIONS[mode]), self.program.text, output, *place]
        return run(self.program.path, arguments, settings, self.scratch)

    def resident(self, model: Model, mode: str, place: tuple[str, ...]) -> Path:
        """Computed once."""
        key = (model.name, mode, place)
        if key not in self.program.resident_logits:
            output = self.program.scratch / f"{model.name}-{mode}-{len(self.program.resident_logits)}"
            self.run(model, mode, place, OFF, output).succeeded()
            self.program.resident_logits[key] = output
        return self.program.resident_logits[key]

    def streamed(self, model: Model, mode: str, place: tuple[str, ...], ram: float, vram: float) -> Path:
        """With a share of what can be streamed in RAM, or as much more as the refusal of that asks for; every byte verified."""
        output = self.scratch / "streamed"
        settings = {"HYPURA": "stream", "HYPURA_VERIFY": "1", "HYPURA_RAM": str(int(ram * model.streamable_bytes))}
        settings["HYPURA_VRAM"] = str(int(vram * model.streamable_bytes)) if vram else "off"
        finished = self.run(model, mode, place, settings, output)
        smallest = re.search(r"HYPURA_RAM=(\d+K)", finished.log)
        if finished.status != 0 and smallest:
            finished = self.run(model, mode, place, settings | {"HYPURA_RAM": smallest.group(1)}, output)
        finished.succeeded()
        return output


@pytest.fixture
def gpu(logits: LogitsProgram, tmp_path: Path) -> Gpu:
    return Gpu(logits, tmp_path)


@pytest.mark.parametrize("mode", POSITIONS)
@pytest.mark.parametrize("vram", VRAM_SHARES, ids="vram-{:.0%}".format)
@pytest.mark.parametrize("ram", RAM_SHARES, ids="ram-{:.0%}".format)
@pytest.mark.parametrize("place", PLACES, ids="-on-cpu-".join)
@pytest.mark.parametrize("model", MODELS, ids=NAME)
def test_a_weight_has_the_same_bits_wherever_it_is(gpu: Gpu, model: Model, place: tuple[str, ...], ram: float, vram: float, mode: str) -> None:
    streamed = gpu.streamed(model, mode, place, ram, vram)
    holds_experts = mode == "single" and vram > 0 and model.has_experts and place in (EXPERTS_ON_CPU, FFN_ON_CPU)
    resident = gpu.resident(model, mode, ALL_ON_GPU if holds_experts else place)
    assert difference(resident, streamed, POSITIONS[mode]) is None


@pytest.mark.parametrize("model", [model for model in MODELS if model.has_experts], ids=NAME)
def test_the_users_own_cache_of_experts_changes_no_text(gpu: Gpu, model: Model) -> None:
    flags = [*COMPARABLE, "-ngl", "99", "--cpu-moe", "--moe-cache-mib", "2"]
    resident = complete(model.path, OFF, gpu.scratch, flags=flags)
    settings = {"HYPURA": "stream", "HYPURA_RAM": str(model.streamable_bytes // 2), "HYPURA_VERIFY": "1"}
    assert complete(model.path, settings, gpu.scratch, flags=flags).succeeded().output == resident.succeeded().output
