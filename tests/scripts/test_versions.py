"""scripts/versions.py: what counts as working, and how the rest is reported."""

from pathlib import Path

import pytest

import versions
from versions import Failed, Version

# Stands for the program that writes logits: $5 is the output, and HYPURA tells a streamed run.
PROGRAM = """#!/bin/sh
echo same >"$5"
if [ "$HYPURA" = stream ]; then {streamed}; fi
"""
STREAMS = """echo '{"read_bytes":5}' >"$HYPURA_STATS\""""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(versions, "WORK", tmp_path)
    monkeypatch.setattr(versions, "MODELS", [tmp_path / "model.gguf"])
    monkeypatch.setattr(versions, "streamable_bytes", lambda model: 1000)
    return tmp_path


def check(folder: Path, streamed: str) -> None:
    program = folder / "program"
    program.write_text(PROGRAM.replace("{streamed}", streamed))
    program.chmod(0o755)
    versions.check_identity(Version("llama 1", None), program, {}, {})


def test_equal_logits_of_a_streamed_run_are_what_works(folder: Path) -> None:
    check(folder, STREAMS)


@pytest.mark.parametrize(
    ("streamed", "reason"),
    [
        (":", "model is not streamed"),
        (STREAMS.replace("5", "0"), "model is not streamed"),
        (f'{STREAMS}; echo other >"$5"', "the logits of model differ"),
        ("exit 3", "running model fails"),
    ],
)
def test_anything_else_does_not(folder: Path, streamed: str, reason: str) -> None:
    with pytest.raises(Failed, match=reason):
        check(folder, streamed)


def test_what_a_failing_step_says_is_kept(folder: Path) -> None:
    version = Version("llama 1", None)
    with pytest.raises(Failed, match="no: building fails"):
        version.call("building", "sh", "-c", "echo the reason; exit 1")
    assert "the reason" in (folder / "llama-1.log").read_text()


def test_the_table_has_a_row_for_each_version() -> None:
    answers = {"unpatched": "streams, equal", "patched": "no: applying the patches fails"}
    text = versions.table([Version("llama 1", None, "0.1.0", answers), Version("llama 2", None, "0.2.0", answers)])
    assert text.splitlines() == [
        "| llama.cpp as in | ggml | unpatched | patched |",
        "|---|---|---|---|",
        "| llama 1 | 0.1.0 | streams, equal | no: applying the patches fails |",
        "| llama 2 | 0.2.0 | streams, equal | no: applying the patches fails |",
    ]
