"""The experts in a GPU's memory give way to whoever else wants it, and come back: on the device of gpu_device.cpp, bit for bit."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from logits import LogitsProgram, build_host
from models import SMOLLM2_MOE
from programs import BIN, OFF, Finished, run


@dataclass
class Hardships:
    """vram_hardships.cpp on a device that is too small for all that it is to hold."""

    program: Path
    device: Path
    model: Path
    text: Path
    scratch: Path
    # To a size of the user's belongs a margin of 133 MiB.
    memory: dict = field(default_factory=lambda: {"HYPURA_TEST_GPU_BYTES": str(640 << 20), "HYPURA_VRAM": "1G"})

    def run(self, hardship: str, settings: dict[str, str], *more: str) -> tuple[Finished, list[bytes]]:
        """What it said, and the logits of its contexts."""
        files = {f"HYPURA_TEST_GPU_{name}": str(self.scratch / name) for name in ("TAKEN", "PADDING")}
        output = self.scratch / "logits"
        arguments = [self.model, self.text, output, hardship, *more]
        finished = run(self.program, arguments, {"LD_PRELOAD": str(self.device)} | self.memory | files | settings, self.scratch)
        return finished, [path.read_bytes() for path in sorted(self.scratch.glob("logits-?"))]


@pytest.fixture(scope="session")
def hardships(logits: LogitsProgram, device: Path, tmp_path_factory: pytest.TempPathFactory) -> Hardships:
    scratch = tmp_path_factory.mktemp("hardships")
    return Hardships(build_host("vram_hardships", BIN, scratch), device, SMOLLM2_MOE.path, logits.text, scratch)


@pytest.fixture(scope="session")
def undisturbed(hardships: Hardships) -> bytes:
    """The logits of the text, computed without libhypura, with all the memory that is wanted."""
    finished, logits = hardships.run("none", OFF)
    finished.succeeded()
    return logits[0]


@pytest.mark.parametrize(("hardship", "more"), [("process", []), ("context", ["8192"]), ("thread", ["8192"]), ("buffers", []), ("graph", [])])
def test_vram_gives_way(hardships: Hardships, undisturbed: bytes, hardship: str, more: list[str], tmp_path: Path) -> None:
    """Whoever else wants memory of the device gets it; nothing fails, and no bit differs."""
    hardships = replace(hardships, scratch=tmp_path)
    settings = {"HYPURA": "stream", "HYPURA_RAM": "150M", "HYPURA_VERIFY": "1", "HYPURA_STATS": str(tmp_path / "stats.json")}
    finished, logits = hardships.run(hardship, settings, *more)
    finished.succeeded()
    assert len(logits) == 1 + len(more)
    for of_context in logits:
        assert of_context == undisturbed[: len(of_context)]
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["errors"] == 0 and stats["vram_bytes_max"] > 300 << 20 and stats["vram_bytes"] == 0
    assert re.search("hypura: .* of VRAM (hold experts now|no longer hold)", finished.log), "nothing gave way"
    assert re.search(r"streamed through [\d.]+ MiB of RAM .* and [\d.]+ MiB of VRAM; [\d.]+ MiB on the GPU for good; ", finished.log)
    if hardship in ("buffers", "graph"):
        assert stats["vram_rescued_bytes"] > 100 << 20, "what fits into RAM is not read again"
    if hardship == "process":
        before, during, after = (int(free) for free in re.findall(r": (\d+) MiB free", finished.output))
        assert during > before + 64 and after < during - 64, "it gave way to the process, and came back"


def test_a_cache_comes_when_memory_comes(hardships: Hardships, undisturbed: bytes, tmp_path: Path) -> None:
    """A device that has no room at first is looked at again."""
    hardships = replace(hardships, scratch=tmp_path)
    settings = {"HYPURA": "stream", "HYPURA_RAM": "150M", "HYPURA_VERIFY": "1", "HYPURA_STATS": str(tmp_path / "stats.json")}
    finished, logits = hardships.run("full", settings)
    finished.succeeded()
    assert logits[0] == undisturbed[: len(logits[0])]
    assert json.loads((tmp_path / "stats.json").read_text())["vram_bytes_max"] > 300 << 20
    assert re.search(r"hypura: [\d.]+ MiB of VRAM hold experts now, 0.0 MiB before", finished.log)
    before, after = (int(free) for free in re.findall(r": (\d+) MiB free", finished.output))
    assert after < before - 300
