"""Several machines over llama.cpp's RPC backend: the other one computes what llama.cpp puts there, and the rest is streamed here.

Results are compared with those of the same flags, the same other machine and `HYPURA=off`.
"""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from far import Endless, Far, make_networks
from logits import LogitsProgram, difference
from models import SMOLLM2_MOE, Model, tiny
from programs import OFF, TIMEOUT_SECONDS, Finished, complete, run

EXPERTS_HERE = ("99", "ffn_.*_exps")
FFN_HERE = ("99", "ffn_")
NOTHING = "^$"

# One layer there, some of them, or all but what is streamed; and how positions are grouped into batches.
PLACES = [("single", ("1", NOTHING)), ("ubatch", ("2", NOTHING)), ("parallel", EXPERTS_HERE), ("ubatch", EXPERTS_HERE)]
CASES = [(tiny(name), *place) for name in ("mixtral", "many-experts", "gptoss") for place in PLACES]
CASES += [(tiny("dense-mixed"), mode, FFN_HERE) for mode in ("single", "ubatch")]


@pytest.fixture
def far(tmp_path: Path):
    networks = make_networks()
    if not networks:
        print("the other machine is this one's loopback: networks of one's own take root, unshare, nsenter and ip")
    try:
        with Far(networks, tmp_path) as far:
            yield far
    finally:
        if networks:
            networks.close()


def positions_of(mode: str) -> int:
    return 576 if mode == "ubatch" else 48


def machine_bytes() -> int:
    """So much memory as the other machine says that it has: about as many layers for each."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def embedding_bytes(model: Model) -> int:
    return sum(int(tensor.n_bytes) for tensor in model.tensors if tensor.name == "token_embd.weight")


def logits_of(program: LogitsProgram, far: Far, model: Model, mode: str, place: tuple[str, str], settings: dict[str, str], output: Path) -> Finished:
    arguments = [model.path, mode, str(positions_of(mode)), program.text, output, *place, far.address]
    return run(program.path, arguments, settings, output.parent, far.through)


def streaming(program: LogitsProgram, model: Model, stats: Path) -> dict[str, str]:
    """The least memory, every byte verified."""
    budget = str(max(model.streamable_bytes // 10, program.smallest_budget(model)))
    return {"HYPURA": "stream", "HYPURA_RAM": budget, "HYPURA_VERIFY": "1", "HYPURA_STATS": str(stats)}


@pytest.mark.parametrize(("model", "mode", "place"), CASES, ids=lambda value: getattr(value, "name", None))
def test_streaming_changes_no_bit(logits: LogitsProgram, far: Far, model: Model, mode: str, place: tuple[str, str], tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    logits_of(logits, far, model, mode, place, OFF, tmp_path / "resident").succeeded()
    logits_of(logits, far, model, mode, place, streaming(logits, model, stats), tmp_path / "streamed").succeeded()
    assert difference(tmp_path / "resident", tmp_path / "streamed", positions_of(mode)) is None
    figures = json.loads(stats.read_text())
    assert figures["errors"] == 0 and figures["read_bytes"] > 0


@pytest.mark.parametrize("mode", ["single", "ubatch"])
def test_a_gpu_here_beside_another_machine(logits: LogitsProgram, far: Far, device: Path, mode: str, tmp_path: Path) -> None:
    """llama.cpp divides the layers between them. The GPU's part, and no more, gets a cache of experts."""
    model, stats = tiny("mixtral"), tmp_path / "stats.json"
    both = {"LD_PRELOAD": str(device), "HYPURA_TEST_GPU_BYTES": str(machine_bytes()), "HYPURA_TEST_GPU_PINS": "1"}
    logits_of(logits, far, model, mode, EXPERTS_HERE, OFF | both, tmp_path / "resident").succeeded()
    logits_of(logits, far, model, mode, EXPERTS_HERE, streaming(logits, model, stats) | both, tmp_path / "streamed").succeeded()
    assert difference(tmp_path / "resident", tmp_path / "streamed", positions_of(mode)) is None
    figures = json.loads(stats.read_text())
    assert 0 < figures["vram_bytes_max"] < model.streamable_bytes and figures["plan"]["remote_bytes"] > 0
    assert figures["errors"] == 0 and figures["vram_hits"] > 0


def test_a_failed_read_fails_the_decode(logits: LogitsProgram, far: Far, device: Path, tmp_path: Path) -> None:
    """The file ends early: a message and no output, while the other machine goes on."""
    whole, model = tiny("mixtral"), Model("short", tmp_path / "short.gguf")
    model.path.write_bytes(whole.path.read_bytes())
    cutting = {"LD_PRELOAD": str(device), "HYPURA_TEST_GPU_BYTES": str(machine_bytes()), "HYPURA_TEST_GPU_CUTS": str(model.path)}
    settings = streaming(logits, whole, tmp_path / "stats.json") | cutting
    logits_of(logits, far, model, "single", EXPERTS_HERE, settings, tmp_path / "logits").refused("hypura: ", "llama_decode failed")
    assert far.process.poll() is None


def test_streamed_weights_do_not_cross_the_network(logits: LogitsProgram, far: Far, tmp_path: Path) -> None:
    """Neither for a prompt nor to be kept there: what is sent is what a resident run sends."""
    model, stats, sent = tiny("mixtral"), tmp_path / "stats.json", {}
    for mode in ("single", "ubatch"):
        for settings in (OFF, streaming(logits, model, stats)):
            before = far.received_bytes()
            logits_of(logits, far, model, mode, EXPERTS_HERE, settings, tmp_path / "logits").succeeded()
            sent[mode, settings["HYPURA"]] = far.received_bytes() - before
        assert sent[mode, "stream"] < sent[mode, "off"] + model.streamable_bytes // 10, sent
    figures = json.loads(stats.read_text())
    assert figures["vram_bytes_max"] == 0
    assert figures["plan"]["remote_bytes"] == model.other_bytes - embedding_bytes(model)


def test_llama_cpps_own_flags(far: Far, tmp_path: Path) -> None:
    """--rpc and --cpu-moe, as users give them."""
    flags = ("--rpc", far.address, "-ngl", "99", "--cpu-moe")
    settings = {"HYPURA": "stream", "HYPURA_RAM": str(SMOLLM2_MOE.streamable_bytes // 3), "HYPURA_VERIFY": "1"}
    resident = complete(SMOLLM2_MOE.path, OFF, tmp_path, *flags, through=far.through).succeeded()
    streamed = complete(SMOLLM2_MOE.path, settings, tmp_path, *flags, through=far.through).succeeded()
    assert len(resident.output.strip()) > 10 and streamed.output == resident.output
    assert re.search(r"streamed through [\d.]+ MiB of RAM .* MiB on other machines; ", streamed.log)


def test_a_server_that_dies_ends_the_computation(far: Far, tmp_path: Path) -> None:
    """llama.cpp gives up on the process: it says so, and nothing of ours keeps it waiting."""
    with Endless(far, tmp_path, "-ngl", "99", "--cpu-moe") as endless:
        assert far.probes_its_peer(far.process) and far.probes_its_peer(endless.process), "neither end may wait for the other without end"
        far.process.kill()
        assert endless.process.wait(TIMEOUT_SECONDS) == -signal.SIGABRT
        assert "Remote RPC server crashed" in endless.errors.read_text()
