"""Contexts that come and go, cancelled prompts and forks, all while a thread decodes, and an exit with all of it still there."""

from logits import build_host
from models import SMOLLM2_MOE
from programs import BIN, run


def test_nothing_that_a_host_does_beside_it_disturbs_a_decode(tmp_path) -> None:
    settings = {"HYPURA": "stream", "HYPURA_RAM": str(int(0.15 * SMOLLM2_MOE.streamable_bytes)), "HYPURA_VERIFY": "1"}
    finished = run(build_host("comings", BIN, tmp_path), [SMOLLM2_MOE.path], settings, tmp_path).succeeded()
    assert finished.output.splitlines() == [
        "prompts are cancelled: yes",
        "what follows them is right: yes",
        "a child that leaves ends: yes",
        "a child that exits ends: yes",
        "the steady one is right: yes",
    ], finished.log[-3000:]
