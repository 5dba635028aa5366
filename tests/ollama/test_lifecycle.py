"""Processes: loading, switching, unloading, dying, stopping."""

import json
import os
import signal
import threading
import time

import pytest
import requests

import kinds
from hypura_server import GREEDY, MODELS, SMOLLM2, STREAMED, TIMEOUT_SECONDS, HypuraServer, is_alive, wait_until

LONG = {"temperature": 0, "num_predict": 400}
# More tokens than any machine computes before a request that nobody waits for must have ended.
ENDLESS, CANCELLED_SECONDS = 20_000, 30


def loaded(server) -> list[str]:
    return [model["name"] for model in server.get("/api/ps").json()["models"]]


def test_one_model_of_a_directory_at_a_time(directory, tmp_path):
    beside = {
        "a projector": kinds.write(directory / "eyes.gguf", general_type="mmproj", general_architecture="clip"),
        "an adapter": kinds.write(directory / "lora.gguf", general_type="adapter", general_architecture="llama"),
        "an importance matrix": kinds.write(directory / "imatrix.gguf", general_type="imatrix"),
        "a control vector": kinds.write(directory / "control.gguf", general_architecture="controlvector"),
    }
    with HypuraServer(directory, tmp_path / "log", "--ctx", "512") as server:
        names = [model["name"] for model in server.get("/api/tags").json()["models"]]
        assert names == ["first:latest", "other/second:latest"] and "broken.gguf" in server.log
        for what, path in beside.items():
            assert f"{path} is {what}" in server.log
        assert loaded(server) == [] and server.llama_servers() == []
        for name in ("first", "other/second", "first"):
            answer = server.ask("/api/generate", {"model": name, "prompt": "Hi", "stream": False, "options": GREEDY})
            assert answer["model"] == name and answer["load_duration"] > 1e7
            assert loaded(server) == [f"{name}:latest"] and len(server.llama_servers()) == 1
        # OpenAI's clients choose by name, too.
        chat = {"model": "other/second", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert server.ask("/v1/chat/completions", chat)["model"] == "other/second:latest"
        assert server.post("/v1/chat/completions", chat | {"model": "nothing"}).json()["error"]["code"] == 404


def test_switching_waits_for_what_is_under_way(directory, tmp_path):
    with HypuraServer(directory, tmp_path / "log", "--ctx", "1024") as server:
        answers = {}

        def ask(name: str) -> None:
            answers[name] = server.ask("/api/generate", {"model": name, "prompt": "Tell a story.", "stream": False, "options": LONG})

        server.ask("/api/generate", {"model": "first"})
        first = threading.Thread(target=ask, args=("first",))
        first.start()
        wait_until(lambda: server.get("/hypura/figures").json()["model"]["in_flight"] == 1, "the first request")
        ask("other/second")
        first.join()
        assert answers["first"]["eval_count"] > 50 and answers["other/second"]["eval_count"] > 50


def test_keep_alive_and_context(directory, tmp_path):
    with HypuraServer(directory, tmp_path / "log", "--keep-alive", "2s", "--ctx", "4096") as server:
        server.ask("/api/generate", {"model": "first", "options": {"num_ctx": 512}, "keep_alive": -1})
        (model,) = server.get("/api/ps").json()["models"]
        assert model["context_length"] == 4096, "smaller ones are served by the default"
        server.ask("/api/generate", {"model": "first"})
        wait_until(lambda: loaded(server) == [], "unloading an idle model")
        wait_until(lambda: server.llama_servers() == [], "the end of its llama-server")
        server.ask("/api/generate", {"model": "first", "keep_alive": -1})
        (model,) = server.get("/api/ps").json()["models"]
        assert model["context_length"] == 4096 and model["expires_at"] > "2100"
        assert server.ask("/api/generate", {"model": "first", "keep_alive": 0})["done_reason"] == "unload"
        assert loaded(server) == [] and server.llama_servers() == []


def test_contexts_are_loaded_in_steps_and_not_beyond_what_the_model_knows(tmp_path):
    with HypuraServer(SMOLLM2, tmp_path, "--ctx", "1024", "--parallel", "1") as server:
        for tokens in (600, 1024, 1100, 1500, 1300, 2048, 700, 131072, 8000, None, 4096):
            options = {} if tokens is None else {"num_ctx": tokens}
            server.ask("/api/generate", {"model": "smollm2", "prompt": "Hi", "stream": False, "options": GREEDY | options})
        (model,) = server.get("/api/ps").json()["models"]
        assert model["context_length"] == 8192
        assert "\nhypura_llama_server_starts_total 3\n" in server.get("/metrics").text, server.log
        assert "131072 were asked for, but the model was trained for 8192" in server.log


def test_a_model_in_a_hugging_face_cache(tmp_path):
    repository = tmp_path / "hub" / "models--o--R-GGUF"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "5a5a").symlink_to(SMOLLM2)
    for name in ("R-Q8_0.gguf", "UD-Q4_K_XL/R-UD-Q4_K_XL.gguf"):
        path = repository / "snapshots" / "c0ffee" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(repository / "blobs" / "5a5a")
    parts = sorted((MODELS / "tiny").glob("split3-*.gguf"))
    for number, part in enumerate(parts):
        (repository / "blobs" / f"b{number}").symlink_to(part)
        path = repository / "snapshots" / "c0ffee" / "BF16" / part.name.replace("split3", "R-BF16")
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(repository / "blobs" / f"b{number}")
    with HypuraServer(tmp_path / "hub", tmp_path / "log", "--ctx", "512") as server:
        names = [model["name"] for model in server.get("/api/tags").json()["models"]]
        assert names == ["hf.co/o/R-GGUF:BF16", "hf.co/o/R-GGUF:Q8_0", "hf.co/o/R-GGUF:UD-Q4_K_XL"]
        split = server.get("/api/tags").json()["models"][0]
        assert split["size"] == sum(part.stat().st_size for part in parts), "all of its parts"
        assert server.ask("/api/generate", {"model": "hf.co/o/R-GGUF:BF16"})["done_reason"] == "load"
        for name in ("hf.co/o/R-GGUF:UD-Q4_K_XL", "R-Q8_0", "hf.co/o/r-gguf"):
            answer = server.ask("/api/generate", {"model": name, "prompt": "Hi", "stream": False, "options": GREEDY})
            assert answer["model"] == name and answer["eval_count"] > 0
    alone = repository / "snapshots" / "c0ffee" / "R-Q8_0.gguf"
    with HypuraServer(alone, tmp_path / "alone", "--ctx", "512") as server:
        (model,) = server.get("/api/tags").json()["models"]
        assert model["name"] == "R-Q8_0:latest", "not the hash of its content"


def test_variables_of_llama_server_do_not_change_where_it_listens(tmp_path, monkeypatch):
    import hypura_server

    own = hypura_server.environment() | {"LLAMA_ARG_API_PREFIX": "/x", "LLAMA_ARG_CTX_SIZE": "64"}
    monkeypatch.setattr(hypura_server, "environment", lambda: own)
    with HypuraServer(SMOLLM2, tmp_path, "--ctx", "1024") as server:
        server.ask("/api/generate", {"model": "smollm2"})
        assert server.get("/api/ps").json()["models"][0]["context_length"] == 1024
        assert "LLAMA_ARG_API_PREFIX=/x is left out" in server.log


def test_a_client_that_hangs_up_frees_its_slot(server):
    for path, body in [
        ("/api/generate", {"prompt": "Tell a very long story.", "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Tell a very long story."}], "stream": True}),
    ]:
        limits = {"options": {"num_predict": ENDLESS}, "max_tokens": ENDLESS}
        response = server.post(path, {"model": "smollm2"} | body | limits, stream=True)
        next(response.iter_lines())
        wait_until(lambda: server.busy_slots() == 1, "generating")
        response.close()
        wait_until(lambda: server.busy_slots() == 0, f"cancelling {path}", CANCELLED_SECONDS)
    # Not streamed: the client is gone before any answer, perhaps before anything was begun.
    body = {"model": "smollm2", "prompt": "Tell a very long story.", "stream": False, "options": {"num_predict": ENDLESS}}
    with pytest.raises(requests.Timeout):
        requests.post(f"{server.url}/api/generate", json=body, timeout=1)
    wait_until(lambda: server.get("/hypura/figures").json()["model"]["in_flight"] == 0, "giving the request up", CANCELLED_SECONDS)
    wait_until(lambda: server.busy_slots() == 0, "cancelling", CANCELLED_SECONDS)


def test_a_dead_llama_server_is_replaced(tmp_path):
    with HypuraServer(SMOLLM2, tmp_path) as server:
        server.ask("/api/generate", {"model": "smollm2"})
        (before,) = server.llama_servers()
        assert "(chosen by memory and model; --ctx sets another)" in server.log
        time.sleep(6)  # one that dies within five seconds is not started again before it is asked for
        response = server.post("/api/generate", {"model": "smollm2", "prompt": "Tell a story.", "options": LONG}, stream=True)
        lines = response.iter_lines()
        next(lines)
        os.kill(before, signal.SIGKILL)
        assert "llama-server" in json.loads(list(lines)[-1])["error"], "half an answer does not look whole"
        wait_until(lambda: server.llama_servers() not in ([], [before]), "a new llama-server")
        assert server.ask("/api/generate", {"model": "smollm2", "prompt": "Hi", "stream": False, "options": GREEDY})["response"]
        assert "ended by itself" in server.log


def test_sigterm_finishes_what_is_under_way(tmp_path):
    with HypuraServer(SMOLLM2, tmp_path, *STREAMED) as server:
        server.ask("/api/generate", {"model": "smollm2"})
        (llama_server,) = server.llama_servers()
        body = {"model": "smollm2", "prompt": "Tell a story.", "options": LONG | {"num_predict": 100}}
        response = server.post("/api/generate", body, stream=True)
        lines = response.iter_lines()
        next(lines)
        server.process.terminate()
        last = json.loads(list(lines)[-1])
        assert last["done"] and last["eval_count"] == 100
        assert server.process.wait(TIMEOUT_SECONDS) == 0
        assert not is_alive(llama_server)


def accepts_connections(server) -> bool:
    try:
        server.get("/")
    except requests.ConnectionError:
        return False
    return True


def test_a_second_sigterm_does_not_wait(tmp_path):
    with HypuraServer(SMOLLM2, tmp_path) as server:
        body = {"model": "smollm2", "prompt": "Tell a story.", "options": LONG | {"num_predict": 3000}}
        lines = server.post("/api/generate", body, stream=True).iter_lines()
        next(lines)
        (llama_server,) = server.llama_servers()
        server.process.terminate()
        # Two signals that come at once are one.
        wait_until(lambda: not accepts_connections(server), "the first one's effect")
        assert server.process.poll() is None
        server.process.terminate()
        assert server.process.wait(TIMEOUT_SECONDS) == 0
        assert not is_alive(llama_server)


@pytest.mark.parametrize("moment", ["loading", "idle", "generating"])
def test_no_orphan_after_sigkill(tmp_path, moment):
    with HypuraServer(SMOLLM2, tmp_path, *STREAMED) as server:
        wait_until(server.llama_servers, "starting llama-server")
        if moment != "loading":
            server.ask("/api/generate", {"model": "smollm2"})
        if moment == "generating":
            body = {"model": "smollm2", "prompt": "Tell a story.", "options": LONG}
            lines = server.post("/api/generate", body, stream=True).iter_lines()
            next(lines)
        (llama_server,) = server.llama_servers()
        server.kill()
        wait_until(lambda: not is_alive(llama_server), "the end of llama-server")


def test_a_model_that_cannot_be_loaded_is_told_with_the_reason(tmp_path):
    vocabulary = tmp_path / "odd.gguf"
    vocabulary.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    server = HypuraServer(vocabulary, tmp_path)
    with pytest.raises(AssertionError, match="hypura serve ended"):
        with server:
            wait_until(lambda: server.process.poll() is not None, "giving up")
            raise AssertionError("hypura serve ended")
    assert server.process.returncode == 1 and server.log.count("cannot be loaded") == 1
    assert "\nllama-server: " not in server.log, "the reason is told once, and not all that follows from it"
    assert max(map(len, server.log.splitlines())) < 700


def test_command_lines_that_are_refused(tmp_path):
    for arguments, words in [
        ([tmp_path / "nothing.gguf"], "cannot open"),
        ([tmp_path], "put a .gguf file there"),
        ([SMOLLM2, "--ram", "6X"], "6X is not a size"),
        ([SMOLLM2, "--keep-alive", "soon"], "is not a duration"),
        ([SMOLLM2, "--origin", "example.org"], "such as https://example.org"),
        ([SMOLLM2, "--host", "192.0.2.1"], "--host is an address or a name of this machine"),
        ([SMOLLM2, "--api-key-file", tmp_path / "none"], "one key a line"),
        ([SMOLLM2, "--", "-np", "4"], "-np cannot be given to llama-server here: --parallel goes before --"),
        ([SMOLLM2, "--", "-c", "1024"], "--ctx"),
    ]:
        server = HypuraServer(arguments[0], tmp_path, *arguments[1:])
        with pytest.raises(AssertionError, match="hypura serve ended"):
            server.__enter__()
        assert words in server.log
