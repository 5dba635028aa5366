"""What is wrong with the input is said clearly and ends the program cleanly; a file that breaks later fails requests, nothing else."""

import json
import re
import shutil

import pytest

from logits import LogitsProgram
from models import SMOLLM2, SMOLLM2_MOE, Model, tiny
from programs import OFF, Finished, complete
from server import Server

STREAM = {"HYPURA": "stream"}


@pytest.fixture
def assert_refused(logits: LogitsProgram, tmp_path):
    """Checks that a model is refused with these words by a plain host, and by llama-completion with a clean exit.

    Not the words of the latter: llama.cpp's programs log from a thread, and leave without waiting for it when they fail.
    """

    def check(model_path, settings: dict[str, str], *words: str) -> Finished:
        complete(model_path, settings, tmp_path).refused()
        return logits.run(model_path, "single", 1, settings, tmp_path / "logits").refused(*words)

    return check


def cut(source: Model, path, size: int) -> None:
    with source.path.open("rb") as whole, path.open("wb") as part:
        part.write(whole.read(size))


def test_a_missing_file(assert_refused, tmp_path) -> None:
    assert_refused(tmp_path / "absent.gguf", STREAM, "absent.gguf", "No such file")


@pytest.mark.parametrize("size", [0, 3, 24, 1000, 100_000])
def test_a_file_cut_in_its_header(size: int, assert_refused, tmp_path) -> None:
    path = tmp_path / "cut.gguf"
    cut(SMOLLM2_MOE, path, size)
    assert_refused(path, STREAM, "cut.gguf", "failed to (read|load)")


@pytest.mark.parametrize("missing", ["half", "one page", "one byte"])
@pytest.mark.parametrize("model", [SMOLLM2, tiny("mixtral"), tiny("align64")], ids=lambda model: model.name)
def test_a_file_shorter_than_its_header_says(model: Model, missing: str, assert_refused, tmp_path) -> None:
    path = tmp_path / "short.gguf"
    whole = max(int(tensor.data_offset + tensor.n_bytes) for tensor in model.tensors)
    cut(model, path, {"half": whole // 2, "one page": whole - 4096, "one byte": whole - 1}[missing])
    assert_refused(path, STREAM, "not within the file bounds|ends before|truncated")


def test_a_missing_part_of_a_split_model(assert_refused, tmp_path) -> None:
    parts = tiny("split3").files
    for part in parts[:-1]:
        shutil.copy(part, tmp_path)
    assert_refused(tmp_path / parts[0].name, STREAM, "split3-00003-of-00003.gguf")


@pytest.mark.parametrize("model", [tiny("qwen3moe"), tiny("gptoss"), tiny("dense-mixed"), SMOLLM2], ids=lambda model: model.name)
def test_an_impossible_budget_and_the_smallest_that_would_do(model: Model, assert_refused, tmp_path) -> None:
    """The message names a number; that number works, and one byte less does not."""
    refusal = assert_refused(model.path, STREAM | {"HYPURA_RAM": "4K"}, r"HYPURA_RAM=\d+K")
    kibibytes = int(re.search(r"HYPURA_RAM=(\d+)K", refusal.log).group(1))
    resident = complete(model.path, OFF, tmp_path).succeeded()
    streamed = complete(model.path, STREAM | {"HYPURA_RAM": f"{kibibytes}K"}, tmp_path).succeeded()
    assert streamed.output == resident.output
    assert_refused(model.path, STREAM | {"HYPURA_RAM": str((kibibytes << 10) - 1)}, f"HYPURA_RAM={kibibytes}K")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HYPURA", "maybe", "auto, off, stream"),
        ("HYPURA_RAM", "lots", "such as 6G"),
        ("HYPURA_RAM", "-1G", "such as 6G"),
        ("HYPURA_RAM", "1.5", "such as 6G"),
        ("HYPURA_IO", "magic", "auto, uring, threads"),
        ("HYPURA_DIRECT", "yes", "auto, cold, on, off"),
        ("HYPURA_PREFETCH", "1", "auto, on, off"),
        ("HYPURA_VERIFY", "yes", "0, 1"),
        ("HYPURA_LOG", "loud", "error, warn, info, debug, trace"),
        ("HYPURA_STATS", "absent-directory/stats.json", "absent-directory is not a directory"),
        ("HYPURA_RMA", "6G", r"did you mean HYPURA_RAM\?"),
        ("HYPURA_ODD", "1", "not a variable of this version"),
    ],
)
def test_a_setting_that_cannot_be_understood(name: str, value: str, words: str, assert_refused) -> None:
    assert_refused(tiny("mixtral").path, STREAM | {name: value}, name, words)


def test_a_setting_is_refused_also_when_nothing_would_be_streamed(assert_refused) -> None:
    """A typing error is found the first time, not on the day when the model no longer fits."""
    assert_refused(tiny("mixtral").path, {"HYPURA_RMA": "6G"}, "did you mean HYPURA_RAM")


@pytest.fixture
def breakable(tmp_path) -> Model:
    """A copy of the MoE that a test may damage."""
    path = tmp_path / "breakable.gguf"
    shutil.copyfile(SMOLLM2_MOE.path, path)
    return Model("breakable", path)


def truncate_weights(model: Model) -> None:
    """Cut the file in the middle of its weights, as an interrupted download over it would."""
    with model.path.open("r+b") as file:
        file.truncate(model.path.stat().st_size // 2)


REQUEST = {"prompt": "Once upon a time there was a small town by the sea, and in it", "n_predict": 16}


def test_a_file_truncated_between_requests_fails_requests_and_nothing_else(breakable: Model, tmp_path) -> None:
    settings = STREAM | {"HYPURA_RAM": "16M"}
    with Server(breakable.path, settings, tmp_path) as server:
        assert server.text("/completion", REQUEST)
        truncate_weights(breakable)
        for path, body in [("/completion", REQUEST)] * 2 + [("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]})]:
            response = server.post(path, body)
            assert response.status_code >= 500, response.text
            assert "error" in response.json() and "content" not in response.json() and "choices" not in response.json()
            assert server.process.poll() is None and server.is_healthy()
        assert re.search(r"hypura: .*breakable\.gguf", server.log), server.log[-4000:]
    assert server.process.returncode == 0


def test_a_file_truncated_during_a_request_ends_the_text_with_an_error(breakable: Model, tmp_path) -> None:
    """What was sent before is the right text; then comes an error, and no more text."""
    body = REQUEST | {"n_predict": 400, "ignore_eos": True, "stream": True}
    with Server(breakable.path, OFF, tmp_path) as server:
        whole_text = server.text("/completion", body | {"stream": False})
    settings = STREAM | {"HYPURA_RAM": "16M"}
    with Server(breakable.path, settings, tmp_path) as server:
        text, error = "", None
        with server.post("/completion", body, stream=True) as response:
            for line in response.iter_lines(decode_unicode=True):
                if not line:
                    continue
                assert error is None, f"after the error came: {line}"
                kind, _, content = line.partition(": ")
                event = json.loads(content)
                if kind == "error" or "error" in event:
                    error = event
                    continue
                assert not event["stop"], "the request came to its end before the file was truncated"
                if not text:
                    truncate_weights(breakable)
                text += event["content"]
        assert error is not None
        assert text and whole_text.startswith(text)
        assert server.post("/completion", REQUEST).status_code >= 500
        assert server.process.poll() is None and server.is_healthy()
