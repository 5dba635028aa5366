"""A whole llama-server on a drive and a file that misbehave: right text or an error, and the next request works when the cause is gone."""

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from logits import build_host
from memory_cgroup import memory_limit
from models import SMOLLM2, SMOLLM2_MOE
from programs import BIN, TIMEOUT_SECONDS, run
from server import Server

BODY = {"prompt": "The capital of Norway is", "n_predict": 16, "id_slot": 0}

# Cases of random faults; `make soak` runs a thousand.
CASES = int(os.environ.get("HYPURA_TEST_FAULT_CASES", "12"))


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "faulty_reads.so"
    source = Path(__file__).with_name("faulty_reads.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Faulty:
    """A streaming llama-server on a copy of a model, whose file and reads can be spoiled and mended."""

    def __init__(self, server: Server, model: Path, control: Path) -> None:
        self.server, self.model, self.control = server, model, control
        self.right = server.text("/completion", BODY)
        assert len(self.right.strip()) > 10

    def ask(self) -> str | None:
        """The text; None for an error that the server told."""
        response = self.server.post("/completion", BODY)
        assert self.server.process.poll() is None, self.server.log[-3000:]
        if response.status_code == 200:
            return response.json()["content"]
        assert response.status_code == 500, response.text
        assert "hypura: cannot compute" in self.server.log, self.server.log[-3000:]
        return None

    def spoil_reads(self, kind: str, share: int, seed: int = 1) -> None:
        self.control.write_text(f"{seed} {kind} {share}\n")

    def mend_reads(self) -> None:
        self.control.write_text("")

    def restore(self) -> None:
        """In place, as cp does it: the file is short until it is whole."""
        self.model.write_bytes(SMOLLM2_MOE.path.read_bytes())

    def works(self) -> None:
        assert self.ask() == self.right, self.server.log[-3000:]


@pytest.fixture
def faulty(tmp_path, shim):
    model, control = tmp_path / "copy.gguf", tmp_path / "faults"
    shutil.copyfile(SMOLLM2_MOE.path, model)
    control.write_text("")
    settings = {
        "HYPURA": "stream", "HYPURA_RAM": str(int(0.1 * SMOLLM2_MOE.streamable_bytes)), "HYPURA_IO": "threads",
        "HYPURA_TEST_FAULTS": str(control), "LD_PRELOAD": str(shim),
    }
    with Server(model, settings, tmp_path) as server:
        yield Faulty(server, model, control)


def test_a_touched_file_goes_on(faulty: Faulty) -> None:
    for _ in range(2):
        os.utime(faulty.model)
        faulty.works()


def test_a_failing_drive_fails_requests_and_a_mended_one_serves_the_next(faulty: Faulty) -> None:
    faulty.spoil_reads("eio", 100)
    assert faulty.ask() is None
    assert "Input/output error" in faulty.server.log
    faulty.mend_reads()
    faulty.works()


def test_errors_that_pass_fail_no_request(faulty: Faulty) -> None:
    faulty.spoil_reads("eio", 10)
    faulty.works()
    faulty.spoil_reads("short", 60)
    faulty.works()
    faulty.spoil_reads("stall", 2)
    faulty.works()


def test_a_file_that_is_cut_and_restored_serves_the_next_request(faulty: Faulty) -> None:
    os.truncate(faulty.model, faulty.model.stat().st_size // 2)
    assert faulty.ask() is None
    assert "truncated" in faulty.server.log
    faulty.restore()
    faulty.works()


def test_other_weights_under_the_name_are_never_used(faulty: Faulty) -> None:
    size = faulty.model.stat().st_size
    with faulty.model.open("r+b") as file:
        file.seek(size // 4)
        file.write(random.Random(1).randbytes(size // 2))
    for _ in range(3):
        assert faulty.ask() is None
    assert "holds other weights" in faulty.server.log
    # Deleted and replaced: the open file is another one, and stays what it is.
    faulty.restore()
    faulty.works()
    faulty.model.unlink()
    faulty.works()
    shutil.copyfile(SMOLLM2_MOE.path, faulty.model)
    faulty.works()


def test_random_faults_never_yield_a_wrong_text_or_a_dead_server(faulty: Faulty) -> None:
    size = faulty.model.stat().st_size
    for case in range(CASES):
        seed = random.Random(case)
        fault = seed.choice(["eio", "short", "stall", "touch", "cut", "restore"])
        if fault == "touch":
            os.utime(faulty.model)
        elif fault == "cut":
            os.truncate(faulty.model, seed.randrange(size // 2, size))
        elif fault == "restore":
            faulty.restore()
        else:
            faulty.spoil_reads(fault, seed.choice([1, 5, 20] if fault != "stall" else [1]), case)
        assert faulty.ask() in (faulty.right, None), f"case {case}"
        faulty.mend_reads()
        if faulty.model.stat().st_size != size:
            faulty.restore()
        faulty.works()


def test_two_servers_share_a_limit(tmp_path) -> None:
    """Both serve, and each comes to its fair share to within a tenth and keeps it. How soon is a question for `make bench-sharing`."""
    stats = tmp_path / "stats.json"
    limit_bytes = 2 * SMOLLM2_MOE.other_bytes + 2 * (220 << 20)
    with memory_limit(limit_bytes) as through:
        settings = {"HYPURA": "stream", "HYPURA_STATS": str(stats)}
        arguments = ["-np", "1", "-c", "512", "-b", "64", "-ub", "64"]
        with Server(SMOLLM2_MOE.path, settings, tmp_path, *arguments, through=through) as first:
            text = first.text("/completion", BODY)
            with Server(SMOLLM2_MOE.path, settings, tmp_path, *arguments, through=through) as second:
                began = fair_since = time.monotonic()
                # Statistics are written every two seconds.
                while time.monotonic() < fair_since + 5:
                    assert first.text("/completion", BODY) == text
                    assert second.text("/completion", BODY) == text
                    budgets = [json.loads(path.read_text())["budget_bytes"] for path in (stats, tmp_path / "stats.json.2")]
                    fair = sum(budgets) / 2
                    if any(abs(budget - fair) > fair / 10 for budget in budgets):
                        fair_since = time.monotonic()
                        assert fair_since < began + TIMEOUT_SECONDS, budgets
            assert first.text("/completion", BODY) == text


def test_what_cannot_be_refused_ends_no_host(tmp_path) -> None:
    """ggml lets a buffer not say that it could not read or must not be written to: the next computation fails instead."""
    model = tmp_path / "copy.gguf"
    shutil.copyfile(SMOLLM2.path, model)
    settings = {"HYPURA": "stream", "HYPURA_RAM": str(int(0.2 * SMOLLM2.streamable_bytes))}
    finished = run(build_host("hardships", BIN, tmp_path), [model], settings, tmp_path).succeeded()
    assert finished.output.splitlines() == [
        "a copy without its bytes is a weight: no",
        "what follows the copy is computed: no",
        "then all is well: yes",
        "a lookup that cannot be prepared is left to others: no",
        "then all is well: yes",
        "a lookup that can be prepared is left to others: yes",
        "it finds the weight: yes",
        "then all is well: yes",
        "the next weight is streamed: yes",
        "what is written to is computed with: no",
    ], finished.log[-3000:]
    assert "cannot be written; run with HYPURA=off" in finished.log
