"""The rows of the bench of predictions."""

import pytest

from predicted import COLUMNS, off_by, table_row
from runs import Run

PREDICTION = {"compute_seconds": 0.02, "stall_seconds": 0.03, "drive_seconds": 0.04, "read_bytes": 50e6, "limit": "drive"}
STATS = {"predicted_tokens_per_second": 20.0, "plan": {"prediction": PREDICTION}}
COUNTED = {"tokens": 100, "stall_seconds": 4.0, "read_seconds": 5.0, "read_bytes": 6e9}


def test_a_row_holds_what_was_predicted_beside_what_came():
    run = Run(decode_tokens=100, decode_seconds=10.0, stats=STATS, decode_stats=COUNTED)
    assert off_by(run) == pytest.approx(1.0)
    row = table_row("25%, run 1", [run])
    assert row == ["25%, run 1", "20.00", "10.00", "+100%", "20.0 / 60.0", "30.0 / 40.0", "40.0 / 50.0", "50.0 / 60.0", "drive"]


def test_a_row_holds_the_medians_of_repeats_and_how_far_they_were_apart():
    runs = [Run(decode_tokens=100, decode_seconds=seconds, stats=STATS, decode_stats=COUNTED) for seconds in (10.0, 4.0, 5.0)]
    row = table_row("25%, run 1", runs)
    assert row[1:5] == ["20.00", "20.00", "+0% (-20% to +100%)", "20.0 / 10.0"]


def test_runs_that_failed_or_wrote_nothing_have_rows_as_well():
    failed = table_row("a", [Run(failure="no token\nand why")])
    assert failed[0] == "a: no token" and len(failed) == len(COLUMNS)
    half = table_row("a", [Run(failure="no token"), Run(decode_tokens=100, decode_seconds=10.0, stats=STATS, decode_stats=COUNTED)])
    assert half[:4] == ["a (1 failed)", "20.00", "10.00", "+100%"]
    assert table_row("c", [Run(), Run(stats={"plan": None})])[0] == "c: nothing was streamed"
    silent = table_row("b", [Run(stats=STATS)])
    assert silent[2:4] == ["", ""] and len(silent) == len(COLUMNS)
    assert off_by(Run(decode_tokens=1, decode_seconds=1.0)) is None
