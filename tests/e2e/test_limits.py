"""Limits of memory, of all kinds: what is announced is kept to, and what cannot work is refused in words."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

from logits import build_host
from memory_cgroup import changing_memory_limit, memory_limit
from models import SMOLLM2, SMOLLM2_MOE
from programs import BIN, OFF, TIMEOUT_SECONDS, complete, run
from server import Server

# Words to put before a command that gets no huge pages (PR_SET_THP_DISABLE).
SMALL_PAGES = (sys.executable, "-c", "import ctypes, os, sys; ctypes.CDLL(None).prctl(41, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])")

SIZES = {"KiB": 10, "MiB": 20, "GiB": 30}
ARGUMENTS = ["-np", "1", "-c", "1024", "-ub", "128", "-b", "128", "-t", "1"]


# Less than the room that is kept free.
LOWERED_STEP_BYTES = 16 << 20


def budget_bytes(stats: Path) -> int:
    return json.loads(stats.read_text())["budget_bytes"]


def announced_bytes(log: str) -> int:
    number, unit = re.search(r"streamed through ([\d.]+) ([KMG]iB) of RAM", log).groups()
    return int(float(number) * (1 << SIZES[unit]))


@pytest.mark.parametrize("pages", [(), SMALL_PAGES], ids=["huge pages", "small pages"])
def test_the_budget_that_is_announced_is_kept(pages: tuple[str, ...], tmp_path) -> None:
    """Buffers and slots are touched after the budget was set; nobody else comes."""
    stats = tmp_path / "stats.json"
    with memory_limit(SMOLLM2_MOE.other_bytes + (300 << 20)) as through:
        settings = {"HYPURA": "stream", "HYPURA_STATS": str(stats)}
        with Server(SMOLLM2_MOE.path, settings, tmp_path, *ARGUMENTS, through=(*through, *pages)) as server:
            server.text("/completion", {"prompt": "times in a row, " * 35, "n_predict": 2})
            kept = budget_bytes(stats)
            assert kept >= 0.9 * announced_bytes(server.log), server.log[-3000:]
            assert "memory runs short" not in server.log


def test_a_limit_below_what_stays_in_memory_is_told(tmp_path) -> None:
    """Before anything comes of it: the host may yet manage with a mapping, where nobody demands that weights are streamed."""
    told = r"hypura: .*of weights stay in memory and .* are needed to stream the rest, but .* can be had"
    with memory_limit(SMOLLM2_MOE.other_bytes - (20 << 20)) as through:
        assert re.search(told, complete(SMOLLM2_MOE.path, {}, tmp_path, tokens=2, through=through).log)
        complete(SMOLLM2_MOE.path, {"HYPURA": "stream"}, tmp_path, tokens=2, through=through).refused(told)


def test_a_limit_just_above_it_is_streamed_within_or_refused(tmp_path) -> None:
    with memory_limit(SMOLLM2_MOE.other_bytes + (10 << 20)) as through:
        finished = complete(SMOLLM2_MOE.path, {}, tmp_path, tokens=2, through=through)
    if finished.status != 0:
        finished.refused(r"hypura: .*(available|stay in memory)")


def test_a_limit_that_is_lowered_is_kept_to(tmp_path) -> None:
    """Step by step while tokens are computed, until weights have less than half: the same text throughout, and nobody is killed."""
    stats, body = tmp_path / "stats.json", {"prompt": "The capital of Norway is", "n_predict": 16}
    limit_bytes = SMOLLM2_MOE.other_bytes + (400 << 20)
    with changing_memory_limit(limit_bytes) as limit:
        settings = {"HYPURA": "stream", "HYPURA_STATS": str(stats)}
        with Server(SMOLLM2_MOE.path, settings, tmp_path, *ARGUMENTS, through=limit.through) as server:
            text = server.text("/completion", body)
            before = budget_bytes(stats)
            lowest_bytes = limit_bytes - before * 2 // 3
            while limit_bytes > lowest_bytes:
                limit_bytes -= LOWERED_STEP_BYTES
                limit.change(limit_bytes)
                assert server.text("/completion", body) == text
            # Statistics are written every two seconds.
            end = time.monotonic() + TIMEOUT_SECONDS
            while budget_bytes(stats) > before // 2:
                assert server.text("/completion", body) == text
                assert time.monotonic() < end, server.log[-3000:]
            assert json.loads(stats.read_text())["errors"] == 0
            assert "memory runs short" in server.log
        assert server.process.returncode == 0


def limited(*limits: str) -> tuple[str, ...]:
    """Words to put before a command that gets these limits of the shell's `ulimit`."""
    return ("sh", "-c", "".join(f"ulimit {limit}; " for limit in limits) + 'exec "$@"', "sh")


def test_small_limits_of_the_process_change_no_text(tmp_path) -> None:
    """No locked memory for rings, few descriptors, few addresses: streaming goes on, with threads if need be."""
    settings = {"HYPURA": "stream", "HYPURA_RAM": str(int(0.3 * SMOLLM2.streamable_bytes))}
    free = complete(SMOLLM2.path, settings, tmp_path, tokens=4).succeeded()
    through = limited("-l 0", "-n 64", "-v 1500000")
    assert complete(SMOLLM2.path, settings, tmp_path, tokens=4, through=through).succeeded().output == free.output


@pytest.mark.parametrize("tensors", ["auto", "all"])
def test_memory_that_is_promised_before_it_is_touched_changes_no_text(tensors: str, tmp_path) -> None:
    """Strict overcommit counts what may be written to, and so does this limit: addresses that are only reserved must not, and the
    budget that nobody has set is one that can be had. Experts have slots of one size; with all tensors there are slots of others, too."""
    streamable_bytes = SMOLLM2_MOE.all_streamable_bytes if tensors == "all" else SMOLLM2_MOE.streamable_bytes
    # What the program needs beside weights is more than the room that this leaves beside them.
    through = limited(f"-d {(streamable_bytes + (100 << 20)) >> 10}")
    stats, free = tmp_path / "stats.json", complete(SMOLLM2_MOE.path, OFF, tmp_path, tokens=4).succeeded()
    stock = complete(SMOLLM2_MOE.path, OFF, tmp_path, "--load-mode", "none", tokens=4, through=through)
    assert stock.status != 0, "the limit is none"
    settings = {"HYPURA": "stream", "HYPURA_TENSORS": tensors, "HYPURA_STATS": str(stats)}
    assert complete(SMOLLM2_MOE.path, settings, tmp_path, tokens=4, through=through).succeeded().output == free.output
    assert 0 < budget_bytes(stats) < streamable_bytes


def test_what_one_model_gives_up_is_promised_to_the_next(tmp_path) -> None:
    """The first one takes all that is promised. What it closes for the second one, and for what the host needs for that, counts no more."""
    host, models = build_host("two_models", BIN, tmp_path), [SMOLLM2_MOE.path, SMOLLM2.path]
    free = run(host, models, OFF, tmp_path).succeeded()
    limit_bytes = SMOLLM2_MOE.streamable_bytes + SMOLLM2.other_bytes + (150 << 20)
    stats = tmp_path / "stats.json"
    settings = {"HYPURA": "stream", "HYPURA_STATS": str(stats)}
    limited_run = run(host, models, settings, tmp_path, limited(f"-d {limit_bytes >> 10}")).succeeded()
    assert limited_run.output == free.output
    first, second = budget_bytes(stats), budget_bytes(tmp_path / "stats.json.2")
    assert 0 < first < announced_bytes(limited_run.log), "the first model has kept what it had"
    assert second > 0


def test_too_few_addresses_end_in_words(tmp_path) -> None:
    settings = {"HYPURA": "stream", "HYPURA_RAM": "60M"}
    finished = complete(SMOLLM2_MOE.path, settings, tmp_path, tokens=2, through=limited("-v 400000"))
    finished.refused("cannot reserve [0-9]+ bytes of address space")
