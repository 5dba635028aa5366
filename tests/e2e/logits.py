"""Logits of every position, and their comparison bit for bit."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models import TINY, Model
from programs import OFF, SOURCE, Finished, run

# How positions are grouped into batches; logits.cpp explains them.
MODES = ("single", "ubatch", "parallel")

# Of a model that computes no logits but embeddings.
EMBEDDINGS = "embeddings"

# A micro-batch of 512 and a smaller one.
UBATCH_POSITIONS = 512 + 64


def position_count(model: Model, mode: str) -> int:
    """How many positions are compared: fewer of the tiny models, which are many; of real ones 256 with `make test-identity`."""
    if mode == "ubatch":
        return UBATCH_POSITIONS
    return 96 if model in TINY else int(os.environ.get("HYPURA_TEST_POSITIONS", "128"))


def build_host(name: str, libraries: Path, scratch: Path) -> Path:
    """Compile NAME.cpp of this folder against the headers of the patched sources and the libraries in a folder."""
    path = scratch / name
    command = ["c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path, Path(__file__).with_name(f"{name}.cpp")]
    command += ["-I", SOURCE / "include", "-I", SOURCE / "ggml" / "include"]
    command += ["-L", libraries, "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
    subprocess.run(list(map(str, command)), check=True)
    return path


@dataclass
class LogitsProgram:
    """The compiled logits.cpp, and the logits of resident runs, which many streamed runs are compared with."""

    path: Path
    scratch: Path
    text: Path
    resident_logits: dict = field(default_factory=dict)
    smallest_budgets: dict = field(default_factory=dict)

    @classmethod
    def build(cls, libraries: Path, scratch: Path, text: Path) -> "LogitsProgram":
        return cls(build_host("logits", libraries, scratch), scratch, text)

    def run(self, model: Path, mode: str, positions: int, settings: dict[str, str], output: Path) -> Finished:
        return run(self.path, [model, mode, str(positions), self.text, output], settings, self.scratch)

    def resident(self, model: Model, mode: str, positions: int) -> Path:
        """The logits with `HYPURA=off`; computed once."""
        key = (model.name, mode, positions)
        if key not in self.resident_logits:
            output = self.scratch / f"{model.name}-{mode}-{positions}.resident"
            self.run(model.path, mode, positions, OFF, output).succeeded()
            values = np.memmap(output, np.float32)
            assert np.isfinite(values).all() and len(np.unique(values[:1000])) > 100, "the model computes nothing meaningful"
            self.resident_logits[key] = output
        return self.resident_logits[key]

    def streamed(self, model: Model, mode: str, positions: int, budget_bytes: int, **more: str) -> tuple[Path, dict]:
        """The logits under a budget, every byte verified, and the statistics of the run."""
        output, stats = self.scratch / "streamed", self.scratch / "stats.json"
        stats.unlink(missing_ok=True)
        settings = {"HYPURA": "stream", "HYPURA_RAM": str(budget_bytes), "HYPURA_VERIFY": "1", "HYPURA_STATS": str(stats)}
        finished = self.run(model.path, mode, positions, settings | more, output).succeeded()
        # Nothing that streams comes to be kept in memory, which is no matter for a time when other contexts decode.
        assert "is used in another way" not in finished.log, finished.log[-3000:]
        return output, json.loads(stats.read_text())

    def smallest_budget(self, model: Model, **more: str) -> int:
        """The least memory that libhypura accepts for a model, as its refusal of less names it."""
        key = (model.name, *more.items())
        if key not in self.smallest_budgets:
            settings = {"HYPURA": "stream", "HYPURA_RAM": "1"} | more
            refusal = self.run(model.path, "single", 1, settings, self.scratch / "refused").refused("HYPURA_RAM=")
            kibibytes = re.search(r"HYPURA_RAM=(\d+)K", refusal.log)
            assert kibibytes, f"the refusal names no budget that would do:\n{refusal.log}"
            self.smallest_budgets[key] = int(kibibytes.group(1)) << 10
        return self.smallest_budgets[key]

    def discard(self) -> None:
        """Logits take half a gigabyte."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def difference(one: Path, other: Path, positions: int) -> str | None:
    """What differs between two files of logits, as bits; None if nothing does."""
    bits = [np.fromfile(path, np.uint32).reshape(positions, -1) for path in (one, other)]
    if bits[0].shape != bits[1].shape:
        return f"{bits[0].shape} and {bits[1].shape} logits"
    differing = np.flatnonzero((bits[0] != bits[1]).any(axis=1))
    if not len(differing):
        return None
    first, second = (bits_of_one.view(np.float32) for bits_of_one in bits)
    return f"{len(differing)} of {positions} positions differ, first {differing[0]}, by up to {np.nanmax(np.abs(first - second))}"
