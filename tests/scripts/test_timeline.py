"""The timeline of a made-up recording: two layers, of which the second is waited for, and the drive idles once."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from timeline import Interval, depth_steps, intervals, picture, read_events, token_starts, union

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/timeline.py"

# One token takes 10 s: layer 0 computes 0 to 2, layer 1 is waited for 2 to 5 and computes 5 to 10 in two waves; no read in 6 to 8.
TOKEN = """\
{0},compute_begin,blk.0.ffn_up.weight,0
{0},read_begin,blk.1.ffn_up_exps.weight#3,4000
{1},read_begin,blk.1.ffn_up_exps.weight#5,4000
{2},compute_end,blk.0.ffn_up.weight,0
{2},wait_begin,blk.1.ffn_up_exps.weight#5,0
{4},read_end,blk.1.ffn_up_exps.weight#3,4000
{5},read_end,blk.1.ffn_up_exps.weight#5,4000
{5},wait_end,blk.1.ffn_up_exps.weight#5,0
{5},compute_begin,blk.1.ffn_up_exps.weight#3,0
{5},read_begin,output.weight,1000
{6},read_end,output.weight,1000
{7},compute_end,blk.1.ffn_up_exps.weight#3,0
{7},compute_begin,blk.1.ffn_up_exps.weight#5,0
{8},read_begin,blk.0.ffn_up.weight,7000
{10},compute_end,blk.1.ffn_up_exps.weight#5,0
"""


def recording(tokens: int) -> str:
    """So many tokens and the beginning of another one. What was read ahead of a token arrives half a second into it."""
    text = "seconds,event,tensor,bytes\n"
    for token in range(tokens):
        text += TOKEN.format(*(10 * token + second for second in range(11)))
        text += f"{10 * token + 10.5},read_end,blk.0.ffn_up.weight,7000\n"
    return text + f"{10 * tokens},compute_begin,blk.0.ffn_up.weight,0\n"


@pytest.fixture
def csv(tmp_path) -> Path:
    path = tmp_path / "timeline.csv"
    path.write_text(recording(2))
    return path


def test_tokens_are_told_apart(csv) -> None:
    assert token_starts(intervals(read_events(csv))) == [0, 10, 20]


def test_waves_of_the_first_tensor_are_one_token() -> None:
    """When the first tensor of a pass is one of experts, its waves do not begin tokens."""
    waves = [Interval("compute", f"blk.0.ffn_up_exps.weight#{expert}", expert, expert + 1) for expert in range(3)]
    others = [Interval("compute", "blk.0.ffn_down_exps.weight#0", 3, 4)]
    again = [Interval("compute", "blk.0.ffn_up_exps.weight#7", 4, 5)]
    assert token_starts(waves + others + again) == [0, 4]


def test_what_is_computed_early_in_its_layer_begins_no_token() -> None:
    """The second matrix is computed with experts that are there while the first one waits for others."""
    order = ["blk.0.up#0", "blk.0.down#0", "blk.0.up#1", "blk.0.down#1", "blk.1.up#0", "blk.0.up#0", "blk.0.down#0", "blk.0.up#1"]
    assert token_starts([Interval("compute", name, moment, moment + 1) for moment, name in enumerate(order)]) == [0, 5]


def test_a_token_holds_what_happened_in_it(csv) -> None:
    shown = picture(intervals(read_events(csv)), 1)
    assert shown.seconds == 10
    assert shown.layers == [0, 1, "other"]
    # What was read ahead of this token is cut at its beginning, what is read ahead of the next one at its end.
    assert shown.spans["read"] == {0: [(0, 0.5), (8, 10)], 1: [(0, 5)], "other": [(5, 6)]}
    assert shown.spans["compute"] == {0: [(0, 2)], 1: [(5, 10)], "other": []}
    assert shown.spans["wait"] == {0: [], 1: [(2, 5)], "other": []}
    assert shown.depth == [(0, 2), (0.5, 1), (1, 2), (4, 1), (5, 1), (6, 0), (8, 1), (10, 0)]
    assert shown.idle == [(6, 8)] and shown.idle_share == 0.2
    assert shown.wait_seconds == 3
    assert shown.read_bytes == 4000 + 4000 + 1000 + 7000


def test_unions_and_depth() -> None:
    assert union([(3, 4), (0, 1), (0.5, 2), (2, 2.5)]) == [(0, 2.5), (3, 4)]
    assert depth_steps([]) == [(0, 0)]


def test_the_picture_is_svg_with_every_layer(csv, tmp_path) -> None:
    svg = tmp_path / "out.svg"
    subprocess.run([sys.executable, SCRIPT, csv, svg, "--token", "1"], check=True)
    root = ElementTree.parse(svg).getroot()
    assert root.get("width") == "1000"
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"layer 0", "layer 1", "other"} <= set(words)
    assert words[0] == "Token 1: 10000 ms, 0.00 GB read (0.00 GB/s), waited 3000 ms, drive idle 20.0%"
    fills = [element.get("fill") for element in root.iter("{http://www.w3.org/2000/svg}path")]
    assert {"#5b8fc7", "#d43a2f", "#58a55c", "#fbe3c0"} <= set(fills)


@pytest.mark.parametrize(
    "text, message",
    [
        ("0,compute_begin,blk.0.x,0\n1,compute_middle,blk.0.x,0\n", ":2: there is no event compute_middle"),
        ("0,compute_begin,blk.0.x\n", ":1: not seconds,event,tensor,bytes"),
        ("now,compute_begin,blk.0.x,0\n", ":1: not seconds,event,tensor,bytes"),
        ("", "holds 0"),
        (recording(1), "holds 1, counted from 0"),
    ],
)
def test_bad_recordings_are_refused(text: str, message: str, tmp_path) -> None:
    path = tmp_path / "timeline.csv"
    path.write_text(text)
    run = subprocess.run([sys.executable, SCRIPT, path, tmp_path / "out.svg", "--token", "1"], capture_output=True, text=True)
    assert run.returncode == 1 and message in run.stderr
    assert not (tmp_path / "out.svg").exists()
