"""A run that lost its processors to other machines is taken again."""

import stolen


def test_what_passed_and_what_was_stolen_are_read(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 4000 500 6 7 80 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    assert stolen.read_ticks(stat) == (100 + 20 + 30 + 4000 + 500 + 6 + 7 + 80, 80)
    assert stolen.read_ticks(tmp_path / "missing") == (0, 0)


def test_the_share_is_of_the_time_since(monkeypatch):
    ticks = iter([(1000, 100), (1200, 150), (1000, 100)])
    monkeypatch.setattr(stolen, "read_ticks", lambda: next(ticks))
    assert stolen.ProcessorTime().stolen() == 0.25
    monkeypatch.setattr(stolen, "read_ticks", lambda: (7, 7))
    assert stolen.ProcessorTime().stolen() == 0, "no time has passed"


def test_a_quiet_run_is_taken_at_once_and_of_disturbed_ones_the_least():
    runs = iter([("first", 0.04), ("second", 0.0)])
    assert stolen.undisturbed(lambda: next(runs)) == "first"
    runs = iter([("a", 0.3), ("b", 0.2), ("c", 0.25), ("d", 0.4), ("e", 0.0)])
    assert stolen.undisturbed(lambda: next(runs)) == "b"
