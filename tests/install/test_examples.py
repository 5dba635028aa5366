"""The examples and other hosts, built by each compiler, run as they are, under sanitizers and under valgrind."""

import json
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import reference
from machine import MODELS, REPOSITORY, environment, run
from prefix import Prefix
from toolchain import COMPILERS, CPP, WARNINGS, C, Toolchain, compiler

EXAMPLES = REPOSITORY / "examples"
TINY = MODELS / "tiny"
SMOLLM2_MOE = MODELS / "smollm2-moe.gguf"
# Experts of odd sizes, with biases beside them; dense; cut into files.
STREAMED = ["gptoss.gguf", "dense-mixed.gguf", "split3-00001-of-00003.gguf"]
# The other files of a split are found by way of its first.
ALL = [path for path in sorted(TINY.glob("*.gguf")) + [SMOLLM2_MOE] if not re.search(r"-0000[2-9]-of-", path.name)]


@pytest.mark.parametrize("name", STREAMED)
def test_every_weight_is_streamed(toolchain: Toolchain, name: str) -> None:
    program = toolchain.build(EXAMPLES / "stream_all.c")
    checksum, byte_count = reference.checksum(TINY / name)
    printed = toolchain.run(program, TINY / name, "960K").split()
    assert printed[:2] == [checksum, str(byte_count)]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_weight_is_streamed_through_the_smallest_budget(gcc: Toolchain, path) -> None:
    program = gcc.build(EXAMPLES / "stream_all.c")
    refusal = gcc.run(program, path, "1K", status=1)
    smallest = re.search(r"HYPURA_RAM=(\d+K)", refusal)
    assert smallest, refusal
    assert gcc.run(program, path, smallest[1]).split()[:2] == [*map(str, reference.checksum(path))]


def test_a_budget_is_all_that_streaming_takes(gcc: Toolchain) -> None:
    """A model of 445 MB passes through 16 MiB of a process that has less than 64 MiB in all."""
    program = gcc.build(EXAMPLES / "stream_all.c")
    peak_kibibytes = 0
    with subprocess.Popen([program, SMOLLM2_MOE, "16M"], env=environment({}), stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            # A process that has just ended has no memory.
            peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
            peak_kibibytes = int(peak[1]) if peak else peak_kibibytes
            time.sleep(0.01)
        assert process.returncode == 0
    assert 16 << 10 < peak_kibibytes < 64 << 10


def test_stream_all_tells_what_is_wrong(gcc: Toolchain, tmp_path) -> None:
    program = gcc.build(EXAMPLES / "stream_all.c")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((TINY / "mixtral.gguf").read_bytes()[:-1])
    assert "missing.gguf" in gcc.run(program, tmp_path / "missing.gguf", status=1)
    assert "cut.gguf" in gcc.run(program, cut, status=1)
    assert "HYPURA_RAM" in gcc.run(program, TINY / "mixtral.gguf", "much", status=1)
    assert gcc.run(program, status=2).startswith("usage: ")


@pytest.mark.parametrize(("path", "layer", "used"), [(TINY / "q8_0.gguf", 1, 2), (TINY / "q8_0.gguf", 0, 8), (SMOLLM2_MOE, 7, 3)])
def test_an_expert_layer_is_multiplied(toolchain: Toolchain, path, layer: int, used: int) -> None:
    program = toolchain.build(EXAMPLES / "expert_layer.cpp")
    printed = toolchain.run(program, path, layer, used, "4M")
    computed = np.array([line.split() for line in printed.splitlines()], dtype=np.float64)
    expected = reference.expert_layer(path, layer, used)
    assert computed.shape == expected.shape
    assert np.abs(computed - expected).max() < 1e-4 * np.abs(expected).max()


def test_expert_layer_tells_what_is_wrong(gcc: Toolchain) -> None:
    program = gcc.build(EXAMPLES / "expert_layer.cpp")
    assert "ggml type 2" in gcc.run(program, TINY / "mixtral.gguf", 0, 2, status=1)
    assert "1 to 8" in gcc.run(program, TINY / "q8_0.gguf", 0, 9, status=1)
    assert "blk.9.ffn_gate_inp.weight" in gcc.run(program, TINY / "q8_0.gguf", 9, 2, status=1)
    assert gcc.run(program, TINY / "q8_0.gguf", 0, "2x", status=2).startswith("usage: ")


def test_a_plain_llama_program_tells_what_is_wrong(gcc: Toolchain, tmp_path) -> None:
    program = gcc.build(EXAMPLES / "plain_llama.c", "-lllama", "-lggml", "-lggml-base")
    assert "cannot load the model" in gcc.run(program, tmp_path / "missing.gguf", "Hello", 4, status=1)
    for count in ["-5", "many", "0"]:
        assert gcc.run(program, TINY / "q8_0.gguf", "Hello", count, status=2).startswith("usage: ")


def test_a_plain_llama_program_streams(toolchain: Toolchain, tmp_path) -> None:
    """With nothing but environment variables; the text is that of a resident run."""
    source = EXAMPLES / "plain_llama.c"
    assert "hypura" not in re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.DOTALL).lower()
    program = toolchain.build(source, "-lllama", "-lggml", "-lggml-base")
    # A real model where that is quick enough.
    path, budget = (TINY / "q8_0.gguf", "1M") if toolchain.kind == "valgrind" else (SMOLLM2_MOE, "20M")
    arguments = [path, "The capital of Norway is", 16]
    resident = toolchain.run(program, *arguments, settings={"HYPURA": "off"})
    stats = tmp_path / "stats.json"
    settings = {"HYPURA": "stream", "HYPURA_RAM": budget, "HYPURA_STATS": str(stats)}
    streamed = toolchain.run(program, *arguments, settings=settings)
    assert len(resident.strip()) > 4
    assert streamed == resident
    figures = json.loads(stats.read_text())
    assert figures["mode"] == "expert-streaming" and figures["expert_misses"] > 0 and figures["errors"] == 0


def test_the_host_of_the_walk_through(toolchain: Toolchain) -> None:
    """The pieces of code in docs/EMBEDDING.md are a program."""
    text = (REPOSITORY / "docs" / "EMBEDDING.md").read_text()
    source = toolchain.scratch / "host.c"
    if source not in toolchain.programs:
        source.write_text("".join(re.findall(r"^```c\n(.*?)^```", text, re.DOTALL | re.MULTILINE)))
    program = toolchain.build(source)
    path = TINY / "mixtral.gguf"
    assert toolchain.run(program, path, settings={"HYPURA": "stream"}) == f"{reference.byte_sum(path, reference.EXPERT)}\n"
    assert toolchain.run(program, path) == "0\n"


@pytest.mark.parametrize("name", ["q8_0.gguf", "split3-00001-of-00003.gguf"])
def test_a_host_that_breaks_the_rules_is_told(toolchain: Toolchain, name: str) -> None:
    program = toolchain.build(REPOSITORY / "tests" / "c" / "contract.c")
    toolchain.run(program, *reference.files_of(TINY / name))


@pytest.mark.parametrize("standard", ["c11", "c17", "c++17", "c++20"])
@pytest.mark.parametrize("name", COMPILERS)
def test_the_header_alone_compiles_without_a_warning(prefix: Prefix, tmp_path, name: str, standard: str) -> None:
    language = CPP if "+" in standard else C
    source = REPOSITORY / "tests" / "c" / "header_alone.c"
    command = [compiler(name, language), "-x", language, f"-std={standard}", *WARNINGS, *prefix.pkg_config("--cflags")]
    run([*command, "-c", source, "-o", tmp_path / "header_alone.o"])
