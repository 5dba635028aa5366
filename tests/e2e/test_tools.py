"""llama.cpp's other programs under streaming, and its own flags about where weights go."""

import json
import re

import pytest

from logits import build_host
from models import SMOLLM2, SMOLLM2_MOE, Model
from programs import BIN, COMPARABLE, GREEDY, OFF, complete, run, run_whole

MODELS = pytest.mark.parametrize("model", [SMOLLM2, SMOLLM2_MOE], ids=lambda model: model.name)


@pytest.fixture
def stats_path(tmp_path):
    return tmp_path / "stats.json"


def streaming(model: Model, stats_path, share: float = 0.3) -> dict[str, str]:
    return {"HYPURA": "stream", "HYPURA_RAM": str(int(share * model.streamable_bytes)), "HYPURA_STATS": str(stats_path)}


def assert_streamed(model: Model, stats_path) -> None:
    figures = json.loads(stats_path.read_text())
    assert figures["mode"] == model.streaming_mode
    assert figures["read_bytes"] > 0 and figures["errors"] == 0


@MODELS
def test_completion(model: Model, tmp_path, stats_path) -> None:
    resident = complete(model.path, OFF, tmp_path).succeeded()
    streamed = complete(model.path, streaming(model, stats_path), tmp_path).succeeded()
    assert len(resident.output.strip()) > 10
    assert streamed.output == resident.output
    assert_streamed(model, stats_path)


def test_the_single_binary(tmp_path, stats_path) -> None:
    """`llama completion` and the others are llama-completion and the others in one program."""
    resident = complete(SMOLLM2_MOE.path, OFF, tmp_path).succeeded()
    arguments = ["completion", "-m", SMOLLM2_MOE.path, *COMPARABLE, *GREEDY, "-no-cnv", "--no-display-prompt", "-n", "24", "-c", "512"]
    arguments += ["-p", "The capital of Norway is"]
    streamed = run_whole(r"\n\n\Z", "llama", arguments, streaming(SMOLLM2_MOE, stats_path), tmp_path).succeeded()
    assert streamed.output == resident.output
    assert_streamed(SMOLLM2_MOE, stats_path)


def test_cli(tmp_path, stats_path) -> None:
    """One turn of a conversation."""
    model = SMOLLM2_MOE
    arguments = ["-m", model.path, *COMPARABLE, *GREEDY, "-c", "512", "-n", "24", "-st", "-p", "What is the capital of Norway?"]
    texts = []
    for settings in (OFF, streaming(model, stats_path)):
        output = run("llama-cli", arguments, settings, tmp_path).succeeded().output
        # the text is between the prompt and the speeds
        text = re.search(r"> What is the capital of Norway\?(.*)\[ Prompt:", output, re.DOTALL)
        assert text, output
        texts.append(text.group(1))
    assert len(texts[0].strip()) > 10
    assert texts[0] == texts[1]
    assert_streamed(model, stats_path)


@MODELS
def test_perplexity(model: Model, text_file, tmp_path, stats_path) -> None:
    """The values, one for each chunk, are equal to the last digit."""
    arguments = ["-m", model.path, *COMPARABLE, "-c", "256", "-b", "256", "--chunks", "2", "-f", text_file]
    values = []
    for settings in (OFF, streaming(model, stats_path)):
        finished = run_whole(r"\[2\]\d+\.\d+,", "llama-perplexity", arguments, settings, tmp_path).succeeded()
        values.append(re.findall(r"\[\d+\]\d+\.\d+", finished.output))
    assert len(values[0]) == 2, values
    assert values[0] == values[1]
    assert_streamed(model, stats_path)


@MODELS
def test_bench(model: Model, tmp_path, stats_path) -> None:
    """It runs, on streamed weights; its random tokens are not a measurement."""
    arguments = ["-m", model.path, "--repack", "0", "-t", "2", "-p", "32", "-n", "8", "-r", "1", "-o", "json"]
    finished = run("llama-bench", arguments, streaming(model, stats_path), tmp_path).succeeded()
    assert [result["avg_ts"] > 0 for result in json.loads(finished.output)] == [True, True]
    assert_streamed(model, stats_path)


def test_bench_tells_of_streaming_where_it_tells_anything(tmp_path, stats_path) -> None:
    """Its log is silent but for -v: then it has what was decided and what is expected, as that of the other programs."""
    arguments = ["-m", SMOLLM2_MOE.path, "--repack", "0", "-t", "2", "-p", "0", "-n", "1", "-r", "1", "--no-warmup"]
    told = run("llama-bench", [*arguments, "-v"], streaming(SMOLLM2_MOE, stats_path), tmp_path).succeeded()
    assert re.search(r"hypura: expert-streaming: .* streamed through .* of RAM", told.log), told.log[-4000:]
    assert re.search(r"hypura: expected: [\d.]+ tokens per second", told.log), told.log[-4000:]
    silent = run("llama-bench", arguments, streaming(SMOLLM2_MOE, stats_path), tmp_path).succeeded()
    assert silent.log == "" and "| tg1 |" in re.sub(" +", " ", silent.output), (silent.log, silent.output)


@pytest.mark.parametrize(
    "flags",
    [["--cpu-moe"], ["--n-cpu-moe", "8"], ["-ot", "exps=CPU"]]
    + [["--load-mode", mode] for mode in ("none", "mmap", "mlock", "mmap+mlock", "dio")]
    + [["--lazy-mode", "on"]],
    ids=lambda flags: " ".join(flags) or "default flags",
)
def test_flags_about_weights_still_stream(flags: list[str], tmp_path, stats_path) -> None:
    """They ask for experts in memory that the host owns, which is what is streamed."""
    resident = complete(SMOLLM2_MOE.path, OFF, tmp_path).succeeded()
    streamed = complete(SMOLLM2_MOE.path, streaming(SMOLLM2_MOE, stats_path), tmp_path, *flags).succeeded()
    assert streamed.output == resident.output
    assert_streamed(SMOLLM2_MOE, stats_path)


def test_streamed_weights_are_not_trained(tmp_path, stats_path) -> None:
    """They cannot be written; without a word the optimizer would hit their inaccessible pages."""
    program = build_host("trains", BIN, tmp_path)
    assert run(program, [SMOLLM2.path], OFF, tmp_path).succeeded().output == "ready\n"
    finished = run(program, [SMOLLM2.path], streaming(SMOLLM2, stats_path), tmp_path)
    finished.refused(r"blk\.\d+\.\S+ is streamed from its file and cannot be trained")


def test_the_cache_of_experts_is_refused_where_there_is_no_gpu(tmp_path, stats_path) -> None:
    arguments = ["-m", SMOLLM2_MOE.path, "--moe-cache-mib", "64", "-p", "x", "-n", "1"]
    finished = run("llama-completion", arguments, streaming(SMOLLM2_MOE, stats_path), tmp_path)
    finished.refused("MoE cache requires a GPU backend")
