"""A llama.cpp without our patches, as releases are built, that loads the backend by GGML_BACKEND_PATH: the same text and logits as
without it, within the same memory, or a clear refusal.

What is resident here is the same program without the variable: nothing of ours is near it.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest

from logits import LogitsProgram, build_host, difference
from memory_cgroup import memory_limit
from models import SMOLLM2, SMOLLM2_MOE, Model, tiny
from programs import BACKEND, COMPARABLE, GREEDY, REPOSITORY, STOCK_BIN, Finished, complete, run
from server import Server
from test_memory import ALLOWANCE_BYTES
from test_server import PROMPTS, TOKENS

COMPLETION = STOCK_BIN / "llama-completion"
LOADED = {"GGML_BACKEND_PATH": str(BACKEND)}
MODELS = pytest.mark.parametrize("model", [SMOLLM2, SMOLLM2_MOE], ids=lambda model: model.name)
LOAD_MODES = ["auto", "none", "mmap+mlock", "mlock", "dio"]


@pytest.fixture
def stats_path(tmp_path):
    return tmp_path / "stats.json"


def streaming(model: Model, stats_path, share: float = 0.3) -> dict[str, str]:
    """Every byte that is computed on is compared with the file."""
    budget_bytes = int(share * model.streamable_bytes)
    return LOADED | {"HYPURA": "stream", "HYPURA_RAM": str(budget_bytes), "HYPURA_STATS": str(stats_path), "HYPURA_VERIFY": "1"}


def assert_streamed(model: Model, stats_path) -> None:
    figures = json.loads(stats_path.read_text())
    assert figures["mode"] == model.streaming_mode
    assert figures["read_bytes"] > 0 and figures["errors"] == 0


def stock_complete(model: Model, settings: dict[str, str], tmp_path, *more: str, **options) -> Finished:
    return complete(model.path, settings, tmp_path, *more, program=COMPLETION, **options)


@pytest.mark.parametrize("load_mode", LOAD_MODES)
@MODELS
def test_completion(model: Model, load_mode: str, tmp_path, stats_path) -> None:
    resident = stock_complete(model, {}, tmp_path).succeeded()
    streamed = stock_complete(model, streaming(model, stats_path), tmp_path, "--load-mode", load_mode).succeeded()
    assert len(resident.output.strip()) > 10
    assert streamed.output == resident.output
    assert "is kept in memory" not in streamed.log
    assert_streamed(model, stats_path)


@pytest.mark.parametrize("flags", [["--cpu-moe"], ["-ot", "exps=CPU"], ["--check-tensors"], ["--no-warmup"]], ids=" ".join)
def test_flags_about_weights(flags: list[str], tmp_path, stats_path) -> None:
    resident = stock_complete(SMOLLM2_MOE, {}, tmp_path).succeeded()
    streamed = stock_complete(SMOLLM2_MOE, streaming(SMOLLM2_MOE, stats_path), tmp_path, *flags).succeeded()
    assert streamed.output == resident.output
    assert_streamed(SMOLLM2_MOE, stats_path)


@pytest.fixture(scope="module")
def stock_logits(tmp_path_factory, text_file):
    """tests/e2e/logits.cpp, linked with the stock build."""
    program = LogitsProgram.build(STOCK_BIN, tmp_path_factory.mktemp("stock-logits"), text_file)
    # backends are looked for beside the program
    program.path.with_name("libggml-cpu.so").symlink_to(STOCK_BIN / "libggml-cpu.so")
    yield program
    program.discard()


@pytest.mark.parametrize("tensors", ["auto", "all"])
@pytest.mark.parametrize("mode", ["single", "ubatch"])
@pytest.mark.parametrize(
    "model", [tiny("gptoss"), tiny("dense-mixed"), tiny("split3"), SMOLLM2, SMOLLM2_MOE], ids=lambda model: model.name
)
def test_logits(model: Model, mode: str, tensors: str, stock_logits: LogitsProgram, stats_path) -> None:
    """Bit for bit; also of a model in three files."""
    positions = 64
    resident, streamed = stock_logits.scratch / "resident", stock_logits.scratch / "streamed"
    stock_logits.run(model.path, mode, positions, {}, resident).succeeded()
    assert len(np.unique(np.memmap(resident, np.float32)[:1000])) > 100, "the model computes nothing meaningful"
    settings = streaming(model, stats_path, 0.5) | {"HYPURA_TENSORS": tensors}
    settings["HYPURA_RAM"] = str(max(int(settings["HYPURA_RAM"]), 16 << 20))
    stock_logits.run(model.path, mode, positions, settings, streamed).succeeded()
    assert difference(resident, streamed, positions) is None
    assert_streamed(model, stats_path)


def cli_text(model: Model, settings: dict[str, str], tmp_path, through: tuple[str, ...] = ()) -> str:
    """What llama-cli answers."""
    question = "What is the capital of Norway?"
    arguments = ["-m", model.path, *COMPARABLE, *GREEDY, "-c", "512", "-n", "24", "-st", "-p", question]
    output = run(STOCK_BIN / "llama-cli", arguments, settings, tmp_path, through).succeeded().output
    text = re.search(re.escape(f"> {question}") + r"(.*)\[ Prompt:", output, re.DOTALL)
    assert text and len(text.group(1).strip()) > 10, output
    return text.group(1)


@MODELS
def test_cli(model: Model, tmp_path, stats_path) -> None:
    resident = cli_text(model, {}, tmp_path)
    assert cli_text(model, streaming(model, stats_path), tmp_path) == resident
    assert_streamed(model, stats_path)


def run_bench(model: Model, settings: dict[str, str], tmp_path, through: tuple[str, ...] = ()) -> None:
    """Its tokens are random and its output are speeds: that they are not 0 is all there is to see."""
    arguments = ["-m", model.path, "--repack", "0", "-t", "2", "-p", "32", "-n", "8", "-r", "1", "-o", "json"]
    finished = run(STOCK_BIN / "llama-bench", arguments, settings, tmp_path, through).succeeded()
    assert [result["avg_ts"] > 0 for result in json.loads(finished.output)] == [True, True]


@MODELS
def test_bench(model: Model, tmp_path, stats_path) -> None:
    run_bench(model, streaming(model, stats_path), tmp_path)
    assert_streamed(model, stats_path)


@MODELS
def test_server(model: Model, tmp_path, stats_path) -> None:
    bodies = [("/completion", {"prompt": prompt}) for prompt in PROMPTS]
    answers = []
    for settings in ({}, streaming(model, stats_path)):
        with Server(model.path, settings, tmp_path, "--no-kv-unified", programs=STOCK_BIN) as server:
            answers.append(server.texts_in_lock_step(bodies, TOKENS))
    assert answers[0] == answers[1]
    assert_streamed(model, stats_path)


def test_a_draft_model(tmp_path, stats_path) -> None:
    """Two models with equal tensor names and unlike weights, the dense one drafting for the MoE made of it: both are streamed."""
    texts = []
    for settings in ({}, streaming(SMOLLM2_MOE, stats_path)):
        draft = ["--model-draft", str(SMOLLM2.path), "--spec-type", "draft-simple", "--spec-draft-n-max", "4"]
        with Server(SMOLLM2_MOE.path, settings, tmp_path, *draft, programs=STOCK_BIN) as server:
            response = server.post("/completion", {"prompt": PROMPTS[0], "n_predict": TOKENS, "id_slot": 0}).json()
            assert response["timings"]["draft_n"] > 0, "nothing was drafted"
            texts.append(response["content"])
    assert texts[0] == texts[1]
    for path in (stats_path, stats_path.with_name(f"{stats_path.name}.2")):
        assert json.loads(path.read_text())["read_bytes"] > 0


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter of rank 4 for a feed-forward matrix of the dense model that is streamed."""
    name = "blk.3.ffn_down.weight"
    (columns, rows) = next(tensor.shape for tensor in SMOLLM2.tensors if tensor.name == name)
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(tmp_path / "adapter.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for part, shape in (("a", (4, columns)), ("b", (rows, 4))):
        writer.add_tensor(f"{name}.lora_{part}", random.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "adapter.gguf"


def test_an_adapter_on_streamed_weights(adapter, tmp_path, stats_path) -> None:
    without = stock_complete(SMOLLM2, {}, tmp_path).succeeded()
    resident = stock_complete(SMOLLM2, {}, tmp_path, "--lora", str(adapter)).succeeded()
    assert resident.output != without.output
    streamed = stock_complete(SMOLLM2, streaming(SMOLLM2, stats_path), tmp_path, "--lora", str(adapter)).succeeded()
    assert streamed.output == resident.output
    assert_streamed(SMOLLM2, stats_path)


def resident_bytes(process_id: int) -> int:
    with open(f"/proc/{process_id}/status") as status:
        return int(re.search(r"^VmRSS:\s+(\d+) kB$", status.read(), re.MULTILINE).group(1)) << 10


def held_bytes(model: Model, budget: str, load_mode: str, tmp_path) -> int:
    """What a server holds after a request."""
    settings = LOADED | {"HYPURA": "stream", "HYPURA_RAM": budget}
    with Server(model.path, settings, tmp_path, "-c", "2048", "--load-mode", load_mode, programs=STOCK_BIN) as server:
        assert server.text("/completion", {"prompt": PROMPTS[0], "n_predict": TOKENS})
        return resident_bytes(server.process.pid)


@pytest.mark.parametrize("load_mode", LOAD_MODES)
def test_memory_is_the_budget_and_the_rest_of_the_model(wide_moe: Model, load_mode: str, tmp_path) -> None:
    """What the loader has read of the whole file is given back, locked or not."""
    held = held_bytes(wide_moe, "128M", load_mode, tmp_path)
    assert held <= wide_moe.other_bytes + (128 << 20) + ALLOWANCE_BYTES
    assert held < 0.4 * wide_moe.path.stat().st_size


def test_memory_of_a_dense_model(wide_dense: Model, tmp_path) -> None:
    held = held_bytes(wide_dense, "128M", "auto", tmp_path)
    assert held <= wide_dense.other_bytes + (128 << 20) + ALLOWANCE_BYTES
    assert held < 0.7 * wide_dense.path.stat().st_size


@pytest.fixture
def cgroup_smaller_than_the_model(wide_moe: Model):
    """The words that put a command into it."""
    limit_bytes = 900 << 20
    assert limit_bytes < 0.7 * wide_moe.path.stat().st_size
    with memory_limit(limit_bytes) as through:
        yield through


@pytest.mark.parametrize("load_mode", ["auto", "none"])
def test_in_a_memory_cgroup_nothing_has_to_be_set(wide_moe: Model, cgroup_smaller_than_the_model, load_mode: str, tmp_path) -> None:
    resident = stock_complete(wide_moe, {}, tmp_path).succeeded()
    through = cgroup_smaller_than_the_model
    streamed = stock_complete(wide_moe, LOADED, tmp_path, "--load-mode", load_mode, through=through).succeeded()
    assert "expert-streaming: " in streamed.log
    assert streamed.output == resident.output


def test_other_tools_in_a_memory_cgroup(wide_moe: Model, cgroup_smaller_than_the_model, tmp_path, stats_path) -> None:
    through, settings = cgroup_smaller_than_the_model, LOADED | {"HYPURA_STATS": str(stats_path)}
    assert cli_text(wide_moe, settings, tmp_path, through) == cli_text(wide_moe, {}, tmp_path)
    assert_streamed(wide_moe, stats_path)

    stats_path.unlink()
    run_bench(wide_moe, settings, tmp_path, through)
    assert_streamed(wide_moe, stats_path)

    stats_path.unlink()
    texts = []
    for used, behind in (({}, ()), (settings, through)):
        with Server(wide_moe.path, used, tmp_path, "-c", "2048", programs=STOCK_BIN, through=behind) as server:
            texts.append(server.text("/completion", {"prompt": PROMPTS[0], "n_predict": TOKENS}))
    assert texts[0] == texts[1]
    assert_streamed(wide_moe, stats_path)


def test_two_models_that_could_be_meant_are_told_apart_or_not_streamed(tmp_path, stats_path) -> None:
    """While another file with the same tensors is open, nothing is streamed, and the text is right."""
    other = tmp_path / "other.gguf"
    shutil.copyfile(SMOLLM2_MOE.path, other)
    resident = stock_complete(SMOLLM2_MOE, {}, tmp_path).succeeded()
    through = ("sh", "-c", f'exec 9<"{other}" "$@"', "sh")
    finished = stock_complete(SMOLLM2_MOE, streaming(SMOLLM2_MOE, stats_path), tmp_path, through=through).succeeded()
    assert finished.output == resident.output
    assert "which one is being loaded cannot be told" in finished.log
    assert "expert-streaming" not in finished.log


def test_weights_that_are_not_certain_to_be_in_the_file_stay_in_memory(tmp_path) -> None:
    """The file was written to while it was being loaded: nothing is streamed from it, and the logits are right."""
    program = build_host("rewritten", STOCK_BIN, tmp_path)
    program.with_name("libggml-cpu.so").symlink_to(STOCK_BIN / "libggml-cpu.so")

    def load(name: str, settings: dict[str, str]) -> Finished:
        path = tmp_path / name
        shutil.copyfile(SMOLLM2_MOE.path, path)
        return run(program, [path], settings, tmp_path).succeeded()

    resident = load("resident.gguf", {})
    assert len(set(resident.output.split())) > 100, "the model computes nothing meaningful"
    kept = load("kept.gguf", LOADED | {"HYPURA": "stream", "HYPURA_RAM": "64M"})
    assert kept.output == resident.output
    assert len(re.findall(r"is kept in memory: .*kept\.gguf was written to", kept.log)) == len(SMOLLM2_MOE.streamable)


def test_a_model_that_fits_is_left_alone(tmp_path) -> None:
    resident = stock_complete(SMOLLM2_MOE, {}, tmp_path).succeeded()
    for settings in (LOADED, LOADED | {"HYPURA": "off"}):
        finished = stock_complete(SMOLLM2_MOE, settings, tmp_path).succeeded()
        assert finished.output == resident.output
        assert "streaming: " not in finished.log


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"HYPURA_RAM": "4K"}, r"HYPURA_RAM=\d+K"), ({"HYPURA": "maybe"}, "auto, off, stream")],
    ids=["too small a budget", "a malformed setting"],
)
def test_what_the_patched_build_refuses_is_refused(settings: dict[str, str], words: str, tmp_path) -> None:
    stock_complete(SMOLLM2_MOE, LOADED | {"HYPURA": "stream"} | settings, tmp_path).refused(words)


def test_a_file_that_is_written_to_fails_requests(tmp_path) -> None:
    path = tmp_path / "breakable.gguf"
    shutil.copyfile(SMOLLM2_MOE.path, path)
    settings = LOADED | {"HYPURA": "stream", "HYPURA_RAM": "16M"}
    body = {"prompt": PROMPTS[0], "n_predict": TOKENS}
    with Server(path, settings, tmp_path, programs=STOCK_BIN) as server:
        assert server.text("/completion", body)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 2)
            file.write(bytes(size // 3))
        assert server.post("/completion", body).status_code >= 500
        assert server.process.poll() is None and server.is_healthy()
        assert re.search(r"hypura: .*breakable\.gguf was written to", server.log), server.log[-4000:]


def build_backend(headers: Path, definition: str, tmp_path: Path) -> Path:
    """The backend as a library of its own, compiled with a definition, and with headers that take the place of ggml's."""
    backend = tmp_path / "libggml-hypura.so"
    adapter, ggml = REPOSITORY / "ggml-hypura", REPOSITORY / "build" / "llama-pristine" / "ggml"
    sources = [path for path in adapter.glob("*.cpp") if path.name != "host_functions.cpp" and not path.name.startswith("llama-")]
    command = ["c++", "-std=c++17", "-O0", "-shared", "-fPIC", f"-D{definition}", "-DGGML_BACKEND_DL", "-DGGML_BACKEND_BUILD"]
    command += ["-DGGML_BACKEND_SHARED", "-DGGML_SHARED", "-I", headers, "-I", adapter, "-I", REPOSITORY / "include"]
    command += ["-I", ggml / "include", "-I", ggml / "src", *sources, "-o", backend]
    command += ["-L", BACKEND.parent, "-lhypura", f"-Wl,-rpath,{BACKEND.parent}"]
    subprocess.run(list(map(str, command)), check=True)
    return backend


@pytest.mark.parametrize(
    ("definition", "interface", "what"),
    [
        ("GGML_MAX_NAME=256", "", r"the size of ggml_tensor"),
        # as ggml 0.28 did, without another API version
        ('HYPURA_GGML_VERSION="9.9.9"', "buffer", r"built with the headers of ggml 9\.9\.9 and loaded by ggml [\d.]+: .* in ggml_backend_buffer"),
        ("X=1", "buffer_type", r"the size of the interface in ggml_backend_buffer_type"),
    ],
    ids=["longer names", "a longer interface", "another interface"],
)
def test_a_backend_for_another_ggml_is_refused_with_both_numbers(definition: str, interface: str, what: str, tmp_path) -> None:
    if interface:
        header = REPOSITORY / "build" / "llama-pristine" / "ggml" / "src" / "ggml-backend-impl.h"
        opening = f"struct ggml_backend_{interface}_i {{"
        assert opening in header.read_text()
        (tmp_path / header.name).write_text(header.read_text().replace(opening, f"{opening} void (*more)(void);"))
    backend = build_backend(tmp_path, definition, tmp_path)
    resident = stock_complete(SMOLLM2_MOE, {}, tmp_path).succeeded()
    settings = {"GGML_BACKEND_PATH": str(backend), "HYPURA": "stream"}
    finished = stock_complete(SMOLLM2_MOE, settings, tmp_path).succeeded()
    assert finished.output == resident.output
    assert re.search(rf"{what} is \d+ in this backend, but \d+ in the ggml that loads it; not used", finished.log), finished.log[-4000:]


def test_a_backend_for_a_ggml_that_differs_by_name_only_streams(tmp_path) -> None:
    backend = build_backend(tmp_path, 'HYPURA_GGML_VERSION="0.0.1"', tmp_path)
    resident = stock_complete(SMOLLM2_MOE, {}, tmp_path).succeeded()
    stats = tmp_path / "stats.json"
    settings = {"GGML_BACKEND_PATH": str(backend), "HYPURA": "stream", "HYPURA_RAM": "16M", "HYPURA_STATS": str(stats)}
    finished = stock_complete(SMOLLM2_MOE, settings, tmp_path).succeeded()
    assert finished.output == resident.output
    assert json.loads(stats.read_text())["read_bytes"] > 0, finished.log[-4000:]
