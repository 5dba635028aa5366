"""A model's file that changes while it is served: answers say why they break off, and then come from the new weights."""

import json
import os
import shutil
import threading

import gguf
import pytest

from hypura_server import GREEDY, SMOLLM2, STREAMED, HypuraServer, wait_until

ASKED = {"model": "copy", "prompt": "The capital of Norway is", "stream": False, "options": GREEDY}
LONG = {"temperature": 0, "num_predict": 1500}


def other_weights(path) -> bytes:
    """The same model with its feed-forward weights in the opposite order of layers: another model of the same form."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors if ".ffn_" in tensor.name}
    layers = 1 + max(int(name.split(".")[1]) for name in tensors)
    content = bytearray(path.read_bytes())
    for name, tensor in tensors.items():
        _, layer, rest = name.split(".", 2)
        opposite = tensors[f"blk.{layers - 1 - int(layer)}.{rest}"]
        if opposite.n_bytes == tensor.n_bytes and opposite.tensor_type == tensor.tensor_type:
            start = tensor.data_offset
            content[start : start + tensor.n_bytes] = opposite.data.tobytes()
    return bytes(content)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "copy.gguf"
    path.write_bytes(other_weights(SMOLLM2))
    with HypuraServer(path, path.parent / "log", *STREAMED, "--ctx", "1024", "--parallel", "1") as server:
        return path, server.ask("/api/generate", ASKED)["response"]


def starts(server) -> int:
    (line,) = [line for line in server.get("/metrics").text.splitlines() if line.startswith("hypura_llama_server_starts_total ")]
    return int(line.split()[1])


def test_a_file_that_is_rewritten_is_loaded_anew(tmp_path, other):
    new, new_text = other
    model = tmp_path / "copy.gguf"
    shutil.copyfile(SMOLLM2, model)
    with HypuraServer(model, tmp_path / "log", *STREAMED, "--ctx", "1700", "--parallel", "3") as server:
        text = server.ask("/api/generate", ASKED)["response"]
        assert text != new_text
        os.utime(model)
        assert server.ask("/api/generate", ASKED)["response"] == text and starts(server) == 1, "touched only"

        broken = {}

        def story(path: str, body: dict) -> None:
            body = {"model": "copy", "stream": True, "options": LONG, "max_tokens": 1500, "ignore_eos": True} | body
            lines = [line for line in server.post(path, body, stream=True).iter_lines() if line.startswith((b"data: {", b"{"))]
            broken[path] = json.loads(lines[-1].removeprefix(b"data: "))

        message = {"messages": [{"role": "user", "content": "Tell a very long story."}]}
        stories = [("/api/generate", {"prompt": "Tell a very long story."}), ("/v1/chat/completions", message), ("/v1/messages", message)]
        threads = [threading.Thread(target=story, args=arguments) for arguments in stories]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.busy_slots() == 3, "generating")
        with model.open("r+b") as file:
            file.write(new.read_bytes())
        for thread in threads:
            thread.join()
        reasons = [broken["/api/generate"]["error"], broken["/v1/chat/completions"]["error"]["message"], broken["/v1/messages"]["message"]]
        assert all("cannot compute: " in reason and "holds other weights" in reason for reason in reasons), broken

        def is_served_again() -> bool:
            response = server.post("/api/generate", ASKED)
            if response.status_code == 200:
                assert response.json()["response"] == new_text
                return True
            assert "holds other weights" in response.json()["error"], response.text
            return False

        wait_until(is_served_again, "an answer from the new weights")
        assert starts(server) == 2 and len(server.llama_servers()) == 1, server.log
        assert "holds something else now and is loaded anew" in server.log


def test_a_file_that_is_replaced_or_cut_while_nobody_asks(tmp_path, other):
    new, new_text = other
    model = tmp_path / "copy.gguf"
    shutil.copyfile(SMOLLM2, model)
    long_ago = (1_600_000_000, 1_600_000_000)
    with HypuraServer(model, tmp_path / "log", *STREAMED, "--ctx", "1024", "--parallel", "1") as server:
        server.ask("/api/generate", ASKED)
        shutil.copyfile(new, tmp_path / "part")
        os.utime(tmp_path / "part", long_ago)
        (tmp_path / "part").rename(model)
        assert server.ask("/api/generate", ASKED)["response"] == new_text, "not an answer from the old file, which is gone"
        assert starts(server) == 2
        # A file that is no model is not loaded; what is loaded says why it cannot go on.
        os.truncate(model, model.stat().st_size // 2)
        os.utime(model, long_ago)
        response = server.post("/api/generate", ASKED)
        assert response.status_code == 500 and "truncated" in response.json()["error"], response.text
        response = server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2})
        assert response.status_code == 500 and "truncated" in response.json()["error"]["message"], response.text
        assert starts(server) == 2 and "no model now" in server.log
        model.write_bytes(new.read_bytes())
        os.utime(model, long_ago)
        assert server.ask("/api/generate", ASKED)["response"] == new_text
