"""Other programs in `make bench-peers`: what is read from what they print."""

import sys
from pathlib import Path

import pytest

from drive import DriveSpeed
from moe import MMAP, NO_PREFETCH, OURS, RESIDENT, Subject
from peers import EXAMPLE, Peer, PeerRun, agreement, print_rows, read_peers, run_peer
from runs import Run

SUBJECT = Subject(Path("a model.gguf"), ["Once upon a time"], 8, [], 0)
PRINTS = "import sys; print('prompt eval time 9.0 tokens per second'); print(sys.argv[1:]); print('eval time = 2 ms, 1.25 tokens per second')"


@pytest.fixture(autouse=True)
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's page cache stays as it is."""
    monkeypatch.setattr("peers.drop_caches", lambda: None)


def test_the_example_is_read_and_takes_what_the_programs_print() -> None:
    ik_llama, edge = read_peers(EXAMPLE)
    assert "{model}" in ik_llama.command and "{cache_mib}" in edge.command


def test_the_speed_is_that_of_generating() -> None:
    pattern = read_peers(EXAMPLE)[0].speed
    peer = Peer("a program", [sys.executable, "-c", PRINTS, "{model}", "{tokens}", "{cache_mib}"], pattern)
    run = run_peer(peer, SUBJECT, (), 1 << 30, 60)
    assert (run.speed, run.failure) == (1.25, None)
    assert "['a model.gguf', '8', '624']" in run.output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["/nowhere/program"], "No such file"),
        ([sys.executable, "-c", "raise SystemExit('no such model')"], "exit status 1, 0 speeds in: no such model"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "took more than"),
    ],
)
def test_what_goes_wrong_is_said(command: list[str], message: str) -> None:
    assert message in run_peer(Peer("a program", command, "(x)"), SUBJECT, (), 1 << 30, 1).failure


def test_texts_are_compared_whatever_the_white_space() -> None:
    continuation = " there was a fox\n\nthat lived in a wood"
    assert agreement("Once there was another fox. there was a  fox that lived in a wood\n", continuation) == "equal"
    assert agreement("there was a fox that slept", continuation) == "21 characters"
    assert agreement("nothing of that", continuation) == "another"


def test_a_file_that_names_no_programs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    for content in ("", "[[peer]]\nname = 1\nprogram = 2\n", "[["):
        path.write_text(content)
        with pytest.raises(SystemExit, match="peers.toml"):
            read_peers(path)


def test_each_program_has_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    stock = Run(decode_tokens=8, decode_seconds=16, written=["there was"])
    resident = Run(decode_tokens=31, decode_seconds=3.1, written=["there was a fox"])
    stats = {"tokens": 31, "read_bytes": 31 * 4e8, "expert_hits": 3, "expert_misses": 1}
    drives = [DriveSpeed(2e9, None)]
    streamed = Run(decode_tokens=31, decode_seconds=7.75, written=["there was a fox"], decode_stats=stats, drives=drives)
    ours = {MMAP: [stock], NO_PREFETCH: [streamed], OURS: [streamed], RESIDENT: [resident]}
    others = {"a program": [PeerRun(1.0, "Once there was a fox")], "a slow one": [PeerRun(failure="took more than 1 s")]}
    print_rows(ours, others)
    cells = {row[0]: row[1:] for line in capsys.readouterr().out.splitlines() if (row := [cell.strip() for cell in line.strip("|").split("|")])}
    assert cells[OURS] == ["4.00", "8.0", "80%", "75%", "equal"], "0.2 s of reading a token, of the 0.25 that it takes"
    assert cells[RESIDENT] == ["10.00", "20.0", "", "", "equal"]
    assert cells["a program"] == ["1.00", "2.0", "20%", "", "equal"]
    assert cells["a slow one"] == ["took more than 1 s", "", "", "", ""]
