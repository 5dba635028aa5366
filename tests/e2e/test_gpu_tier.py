"""GPUs compute with streamed weights, and hold some of them: bits, faults and memory, on a device that stands in for one.

The device (gpu_device.cpp) computes with the CPU's kernels in memory that is not the host's, and copies as late as it may. Results are
compared with those of the same flags and `HYPURA=off`.
"""

import json
from pathlib import Path

import pytest

from logits import LogitsProgram, difference
from models import SMOLLM2, SMOLLM2_MOE, Model, tiny
from programs import COMPARABLE, OFF, Finished, complete, run

EXPERTS_ON_CPU = ("99", "ffn_.*_exps")
FFN_ON_CPU = ("99", "ffn_")
PLACES = [("0",), ("1",), EXPERTS_ON_CPU]
USUAL_PLACE = {SMOLLM2_MOE: EXPERTS_ON_CPU, SMOLLM2: FFN_ON_CPU}
TINY_MIXTURES = (tiny("mixtral"), tiny("many-experts"), tiny("gptoss"))
REAL = (SMOLLM2_MOE, SMOLLM2)


def prompts():
    """Model, place, share of RAM. Real models take their time, so each has one case: the least memory, the usual place."""
    for model in (*TINY_MIXTURES, tiny("dense-mixed"), *REAL):
        for place in [USUAL_PLACE[model]] if model in REAL else PLACES:
            for share in (0.1,) if model in REAL else (0.1, 0.6):
                yield pytest.param(model, place, share, id=f"{model.name}-{'-'.join(place)}-{share:.0%}")


def tiers():
    """Model, share of VRAM, share of RAM, mode; of the real model the least memory."""
    for model in (*TINY_MIXTURES, SMOLLM2_MOE):
        for vram in (0.3,) if model in REAL else (0.3, 0.6, 2.0):
            for ram in (0.1,) if model in REAL else (0.1, 0.5):
                for mode in ("single", "parallel", "ubatch"):
                    yield pytest.param(model, vram, ram, mode, id=f"{model.name}-vram-{vram:.0%}-ram-{ram:.0%}-{mode}")


@pytest.fixture(scope="session")
def residents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the logits of resident runs are kept."""
    return tmp_path_factory.mktemp("residents")


class Gpu:
    """Logits of a machine that has the device."""

    def __init__(self, program: LogitsProgram, device: Path, kept: Path, scratch: Path) -> None:
        self.program, self.device, self.kept, self.scratch = program, device, kept, scratch
        self.stats = scratch / "stats.json"

    def run(self, model: Model, mode: str, positions: int, place: tuple[str, ...], settings: dict[str, str], output: Path | None = None) -> tuple[Finished, Path]:
        output = output or self.scratch / "logits"
        arguments = [model.path, mode, str(positions), self.program.text, output, *place]
        return run(self.program.path, arguments, {"LD_PRELOAD": str(self.device)} | settings, self.scratch), output

    def resident(self, model: Model, mode: str, positions: int, place: tuple[str, ...]) -> Path:
        """Computed once for all tests."""
        output = self.kept / f"{model.name}-{mode}-{positions}-{'-'.join(place).replace('*', '')}"
        if not output.exists():
            unfinished = output.with_name("unfinished")
            self.run(model, mode, positions, place, OFF, unfinished)[0].succeeded()
            unfinished.rename(output)
        return output

    def streamed(self, model: Model, mode: str, positions: int, place: tuple[str, ...], share: float, **more: str) -> tuple[Path, dict]:
        """Under a budget that is a share of what can be streamed, every byte verified; with the statistics."""
        budget = max(int(share * model.streamable_bytes), self.program.smallest_budget(model))
        settings = {"HYPURA": "stream", "HYPURA_RAM": str(budget), "HYPURA_VERIFY": "1", "HYPURA_STATS": str(self.stats)}
        self.stats.unlink(missing_ok=True)
        finished, output = self.run(model, mode, positions, place, settings | more)
        finished.succeeded()
        return output, json.loads(self.stats.read_text())


@pytest.fixture
def gpu(logits: LogitsProgram, device: Path, residents: Path, tmp_path: Path) -> Gpu:
    return Gpu(logits, device, residents, tmp_path)


@pytest.mark.parametrize(("model", "place", "share"), prompts())
def test_a_prompt_on_the_gpu_has_the_bits_of_stock(gpu: Gpu, model: Model, place: tuple[str, ...], share: float) -> None:
    """Weights in RAM are multiplied on the GPU from 32 tokens on, streamed or not."""
    positions = 512 + 64
    streamed, stats = gpu.streamed(model, "ubatch", positions, place, share, HYPURA_VRAM="off")
    assert difference(gpu.resident(model, "ubatch", positions, place), streamed, positions) is None
    assert stats["errors"] == 0 and stats["read_bytes"] > 0 and stats["vram_bytes_max"] == 0


@pytest.mark.parametrize(("model", "vram", "ram", "mode"), tiers())
def test_experts_in_vram_have_the_bits_of_stock(gpu: Gpu, model: Model, vram: float, ram: float, mode: str) -> None:
    """Whether an expert lies in VRAM, in RAM or on the drive changes no bit, while they move between the three."""
    positions = 576 if mode == "ubatch" else 96
    vram_bytes = str(int(vram * model.streamable_bytes))
    streamed, stats = gpu.streamed(model, mode, positions, EXPERTS_ON_CPU, ram, HYPURA_VRAM=vram_bytes)
    assert difference(gpu.resident(model, mode, positions, EXPERTS_ON_CPU), streamed, positions) is None
    assert stats["errors"] == 0
    assert 0 < stats["vram_bytes_max"] <= int(vram_bytes)
    assert stats["vram_bytes"] == 0, "contexts are gone"
    # Too few slots for what four tokens may want leave those to the CPU, by their number and not by what is cached.
    assert stats["vram_hits"] > 0 or (mode == "parallel" and vram < 0.5)


@pytest.mark.parametrize("mode", ["single", "ubatch"])
def test_two_gpus_hold_the_experts_of_their_layers(gpu: Gpu, mode: str) -> None:
    positions = 576 if mode == "ubatch" else 96
    vram_bytes, two = str(SMOLLM2_MOE.streamable_bytes // 3), {"HYPURA_TEST_GPU_COUNT": "2"}
    resident, streamed = gpu.scratch / "resident", gpu.scratch / "streamed"
    gpu.run(SMOLLM2_MOE, mode, positions, EXPERTS_ON_CPU, OFF | two, resident)[0].succeeded()
    streamed, stats = gpu.streamed(SMOLLM2_MOE, mode, positions, EXPERTS_ON_CPU, 0.3, HYPURA_VRAM=vram_bytes, **two)
    assert difference(resident, streamed, positions) is None
    # The size is for each of them.
    assert int(vram_bytes) < stats["vram_bytes_max"] <= 2 * int(vram_bytes) and stats["vram_hits"] > 0


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_prompt_of_several_micro_batches(device: Path, text_file: Path, tmp_path: Path, count: str) -> None:
    """Nothing is wanted of all but the last: for them the last layer multiplies nothing, on our backend, which else does nothing."""
    model, prompt = SMOLLM2_MOE, text_file.read_text()[:1200]
    flags = [*COMPARABLE, "-ngl", "99", "--cpu-moe", "-ub", "64"]
    settings = {"LD_PRELOAD": str(device), "HYPURA_TEST_GPU_COUNT": count}
    resident = complete(model.path, settings | OFF, tmp_path, flags=flags, prompt=prompt, tokens=8).succeeded()
    tier = {"HYPURA": "stream", "HYPURA_RAM": "120M", "HYPURA_VRAM": "60M"}
    streamed = complete(model.path, settings | tier, tmp_path, flags=flags, prompt=prompt, tokens=8).succeeded()
    assert streamed.output == resident.output


def test_what_leaves_vram_moves_down_and_is_not_read_again(gpu: Gpu) -> None:
    """RAM and VRAM hold different experts: together they hold the model, so each is read once and a bit."""
    streamed, stats = gpu.streamed(SMOLLM2_MOE, "single", 256, EXPERTS_ON_CPU, 0.6, HYPURA_VRAM=str(int(0.6 * SMOLLM2_MOE.streamable_bytes)))
    assert stats["vram_rescued_bytes"] > 0
    assert stats["read_bytes"] < 1.1 * SMOLLM2_MOE.streamable_bytes
    # A token is a pass also where nothing is left for the CPU to compute: what is foreseen, measured and learned goes by passes.
    assert stats["tokens"] == 256 and stats["measured_tokens_per_second"] > 0


def test_the_gpus_own_host_memory_holds_the_slots(gpu: Gpu) -> None:
    """Slots in memory that the device's driver gives out, as pinned memory is."""
    model = SMOLLM2_MOE
    streamed, stats = gpu.streamed(model, "single", 96, EXPERTS_ON_CPU, 0.4, HYPURA_VRAM=str(model.streamable_bytes // 3), HYPURA_TEST_GPU_PINS="1")
    assert difference(gpu.resident(model, "single", 96, EXPERTS_ON_CPU), streamed, 96) is None
    assert stats["errors"] == 0


def test_what_is_free_is_used_but_for_a_margin(gpu: Gpu) -> None:
    """Unasked, with enough memory all experts are in VRAM; with little, none, and nothing fails."""
    model = SMOLLM2_MOE
    _, stats = gpu.streamed(model, "single", 48, EXPERTS_ON_CPU, 0.3)
    assert stats["vram_bytes_max"] >= model.streamable_bytes
    _, stats = gpu.streamed(model, "single", 48, EXPERTS_ON_CPU, 0.3, HYPURA_TEST_GPU_BYTES=str(500 << 20))
    assert stats["vram_bytes_max"] == 0


def test_a_failed_read_fails_the_decode_on_the_gpu_too(gpu: Gpu, tmp_path: Path) -> None:
    """The file ends early: no output, a message, and the process lives to say so."""
    model = SMOLLM2_MOE
    short = Model("short", tmp_path / "short.gguf")
    budget = str(max(model.streamable_bytes // 5, gpu.program.smallest_budget(model)))
    for mode, vram in (("ubatch", "off"), ("single", str(model.streamable_bytes // 3))):
        short.path.write_bytes(model.path.read_bytes())
        settings = {"HYPURA": "stream", "HYPURA_RAM": budget, "HYPURA_VRAM": vram, "HYPURA_TEST_GPU_CUTS": str(short.path)}
        finished, _ = gpu.run(short, mode, 96 if mode == "single" else 576, EXPERTS_ON_CPU, settings)
        finished.refused("hypura: cannot copy", "llama_decode failed")


@pytest.mark.parametrize(("value", "words"), [("some", "HYPURA_VRAM=some is not a setting"), ("-1G", "HYPURA_VRAM=-1G")])
def test_a_malformed_variable_is_refused(gpu: Gpu, value: str, words: str) -> None:
    finished, _ = gpu.run(SMOLLM2_MOE, "single", 4, EXPERTS_ON_CPU, {"HYPURA": "stream", "HYPURA_VRAM": value})
    finished.refused(words)
