"""scripts/versions.py: what counts as working, and how the rest is reported."""

import json
from pathlib import Path

import pytest

import versions
from versions import GPU_CELL, LEFT_OUT, Failed, Run, Version

# Stands for the program that writes logits: $5 is the output, and HYPURA tells a streamed run.
PROGRAM = """#!/bin/sh
echo same >"$5"
if [ "$HYPURA" = stream ]; then {streamed}; fi
"""
STREAMS = """echo '{"read_bytes":5}' >"$HYPURA_STATS\""""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(versions, "WORK", tmp_path)
    monkeypatch.setattr(versions, "streamable_bytes", lambda model: 1000)
    return tmp_path


def check(folder: Path, streamed: str) -> None:
    program = folder / "program"
    program.write_text(PROGRAM.replace("{streamed}", streamed))
    program.chmod(0o755)
    versions.check_identity(Version("llama 1", None), program, folder / "model.gguf", {}, {}, Run())


def test_equal_logits_of_a_streamed_run_are_what_works(folder: Path) -> None:
    check(folder, STREAMS)


@pytest.mark.parametrize(
    ("streamed", "reason"),
    [
        (":", "it is not streamed"),
        (STREAMS.replace("5", "0"), "it is not streamed"),
        (f'{STREAMS}; echo other >"$5"', "the logits differ"),
        ("exit 3", "running fails"),
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


def test_the_table_has_a_row_for_each_version_and_a_cell_for_each_way_and_kind() -> None:
    cells = ["unpatched, dense", "unpatched, mixture", "patched, dense", "patched, mixture"]
    worked = dict.fromkeys(cells, "streams, equal") | {GPU_CELL: LEFT_OUT}
    failed = worked | {"patched, mixture": "no: the logits differ"}
    text = versions.table([Version("llama 1", None, "0.1.0", worked), Version("llama 2", None, "0.2.0", failed)])
    equal = " | ".join(["streams, equal"] * 3)
    assert text.splitlines() == [
        "| llama.cpp as in | ggml | unpatched, dense | unpatched, mixture | patched, dense | patched, mixture | patched, GPU |",
        "|---|---|---|---|---|---|---|",
        f"| llama 1 | 0.1.0 | {equal} | streams, equal | left out |",
        f"| llama 2 | 0.2.0 | {equal} | no: the logits differ | left out |",
    ]


def test_what_fails_before_a_model_is_run_fills_a_ways_cells(folder: Path, monkeypatch) -> None:
    def fails(version: Version, tree: Path) -> None:
        raise Failed("no: building fails")

    monkeypatch.setattr(versions, "WAYS", {"patched": fails})
    version = Version("llama 1", None)
    versions.attempt_way(version, folder, "patched")
    assert version.answers == dict.fromkeys(["patched, dense", "patched, mixture", "patched, GPU"], "no: building fails")


def test_a_model_that_fails_leaves_the_other_its_cell(folder: Path, monkeypatch) -> None:
    program = folder / "program"
    program.write_text(PROGRAM.replace("{streamed}", f'{STREAMS}; case $1 in *moe*) echo other >"$5";; esac'))
    program.chmod(0o755)
    monkeypatch.setattr(versions, "WAYS", {"patched": lambda version, tree: (program, {}, {})})
    version = Version("llama 1", None)
    versions.attempt_way(version, tree_of(folder, "class llama_context;"), "patched")
    assert version.answers == {"patched, dense": "streams, equal", "patched, mixture": "no: the logits differ", "patched, GPU": "left out"}


def tree_of(folder: Path, context_header: str) -> Path:
    (folder / "src").mkdir()
    (folder / "src" / "llama-context.h").write_text(context_header)
    return folder


@pytest.mark.parametrize(
    ("statistics", "answer"),
    [
        ({"read_bytes": 5, "vram_hits": 1, "vram_bytes_max": 400}, "streams, equal"),
        ({"read_bytes": 5, "vram_hits": 0, "vram_bytes_max": 400}, "no: the device holds no experts, or too many"),
        ({"read_bytes": 5, "vram_hits": 1, "vram_bytes_max": 401}, "no: the device holds no experts, or too many"),
    ],
)
def test_with_the_patch_for_gpus_a_device_must_hold_experts(folder: Path, monkeypatch, statistics: dict, answer: str) -> None:
    program = folder / "program"
    program.write_text(PROGRAM.replace("{streamed}", f"echo '{json.dumps(statistics)}' >\"$HYPURA_STATS\""))
    program.chmod(0o755)
    monkeypatch.setattr(versions, "WAYS", {"patched": lambda version, tree: (program, {}, {})})
    monkeypatch.setattr(versions, "build_device", lambda version, tree, libraries: libraries / "device.so")
    version = Version("llama 1", None)
    versions.attempt_way(version, tree_of(folder, "std::shared_ptr<struct llama_hypura_vram> vram;"), "patched")
    assert version.answers == {"patched, dense": "streams, equal", "patched, mixture": "streams, equal", "patched, GPU": answer}


def test_each_listed_package_is_asked_for_its_newest_version(monkeypatch) -> None:
    lines = versions.listed("# comment\npypi one 1 hash folder\npypi one 2 hash folder\npypi two 1 hash other\ncrate three 1\n")
    monkeypatch.setattr(versions, "newest_of_package", lambda name: "9")
    monkeypatch.setattr(versions, "crate_version", lambda name, requirement: Version(f"{name} {requirement}", None))
    names = [version.name for version in versions.newest(lines, {"pypi_package": "pinned", "pypi_folder": "there"})]
    assert names == ["one 9", "two 9", "pinned 9", "three *"]


def test_a_line_that_is_not_understood_is_named() -> None:
    with pytest.raises(SystemExit, match="pypi one 1 hash"):
        versions.listed("pypi one 1 hash\n")


def test_the_versions_that_are_listed_are_understood_and_ten_with_the_pinned_one() -> None:
    lines = versions.listed((versions.REPO / "patches" / "VERSIONS").read_text())
    assert len({tuple(line[1:3]) for line in lines}) >= 9
