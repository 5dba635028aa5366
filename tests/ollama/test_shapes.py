"""The JSON of every endpoint, field by field, as Ollama documents it."""

import json
import re

import pytest
import requests

from hypura_server import GREEDY, REPOSITORY, SMOLLM2

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
DIGEST = r"[0-9a-f]{64}"

DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "134.52M",
    "quantization_level": "Q4_1",
    "context_length": 8192,
    "embedding_length": 576,
}
DURATIONS = {
    "total_duration": int,
    "load_duration": int,
    "prompt_eval_count": int,
    "prompt_eval_duration": int,
    "eval_count": int,
    "eval_duration": int,
}
MODEL = {"name": "smollm2:latest", "model": "smollm2:latest", "digest": re.compile(DIGEST), "details": DETAILS}


def check(value, shape, where: str = "answer") -> None:
    """The value has the shape: types, patterns, values, and of objects exactly these fields."""
    if isinstance(shape, dict):
        assert isinstance(value, dict) and value.keys() == shape.keys(), f"{where}: {value}"
        for name in shape:
            check(value[name], shape[name], f"{where}.{name}")
    elif isinstance(shape, re.Pattern):
        assert shape.fullmatch(value), f"{where}: {value!r}"
    elif isinstance(shape, type):
        assert type(value) is shape, f"{where}: {value!r}"
    else:
        assert value == shape, f"{where}: {value!r}"


def check_durations(answer: dict) -> None:
    """They are measured: parts are positive and no larger than the whole."""
    parts = answer["load_duration"] + answer["prompt_eval_duration"] + answer["eval_duration"]
    assert answer["load_duration"] > 0 and answer["prompt_eval_duration"] > 0 and answer["eval_duration"] > 0
    assert parts <= answer["total_duration"] * 1.01


def test_root_and_version(server):
    assert server.get("/").text == "Ollama is running"
    for path in ("/", "/api/version", "/api/tags"):
        response = requests.head(server.url + path, timeout=60)
        assert response.status_code == 200 and response.content == b""
    version = server.get("/api/version").json()
    check(version, {"version": re.compile(r"\d+\.\d+\.\d+"), "hypura": re.compile(r"\d+\.\d+\.\d+")})
    documented = (REPOSITORY / "docs" / "SERVER.md").read_text()
    assert f"version {version['version']}, which" in documented, "the version whose API was compared is stated once"


def test_what_programs_ask_before_they_ask(server):
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/api/status").json() == {"cloud": {"disabled": True, "source": "config"}}


def test_tags_and_ps(server):
    model = MODEL | {"modified_at": re.compile(TIME), "size": SMOLLM2.stat().st_size, "capabilities": ["completion"]}
    tags = server.get("/api/tags").json()
    check(tags, {"models": list})
    (only,) = tags["models"]
    check(only, model)
    server.ask("/api/generate", {"model": "smollm2"})
    (loaded,) = server.get("/api/ps").json()["models"]
    check(loaded, MODEL | {"size": int, "size_vram": 0, "expires_at": re.compile(TIME), "context_length": 2048})
    assert 20 << 20 < loaded["size"] < 2 << 30


@pytest.mark.parametrize("name", ["smollm2", "smollm2:latest", "SmolLM2.gguf", "registry.ollama.ai/library/smollm2"])
@pytest.mark.parametrize("field", ["model", "name"])
def test_show(server, name, field):
    shape = {
        "modelfile": re.compile(r"# .*\nFROM .*smollm2\.gguf\nPARAMETER num_ctx 2048\n"),
        "parameters": re.compile(r"num_ctx +2048"),
        "template": re.compile(r"(?s).*<\|im_start\|>.*"),
        "license": "apache-2.0",
        "details": DETAILS,
        "model_info": dict,
        "capabilities": ["completion"],
        "modified_at": re.compile(TIME),
    }
    answer = server.ask("/api/show", {field: name})
    check(answer, shape)
    info = answer["model_info"]
    assert info["general.architecture"] == "llama" and info["general.parameter_count"] == 134515008
    assert info["general.basename"], "editors show it"
    assert info["llama.context_length"] == 8192 and info["tokenizer.ggml.tokens"] is None

    verbose = server.ask("/api/show", {field: name, "verbose": True})
    check(verbose, shape | {"tensors": list})
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) == 49152
    assert {"name": "token_embd.weight", "type": "Q8_0", "shape": [576, 49152]} in verbose["tensors"]


def test_generate(server):
    request = {"model": "smollm2", "prompt": "Say hello.", "options": GREEDY}
    line = {"model": "smollm2", "created_at": re.compile(TIME), "response": str, "done": False}
    last = line | {"done": True, "done_reason": "length", "context": list} | DURATIONS

    streamed = server.post("/api/generate", request)
    assert streamed.headers["content-type"] == "application/x-ndjson"
    *lines, final = [json.loads(text) for text in streamed.text.splitlines()]
    assert len(lines) == 8
    for text in lines:
        check(text, line)
    check(final, last | {"response": ""})
    check_durations(final)
    assert (final["prompt_eval_count"], final["eval_count"]) == (33, 8)

    whole = server.ask("/api/generate", request | {"stream": False})
    check(whole, last)
    assert whole["response"] == "".join(text["response"] for text in lines)
    assert whole["context"] == final["context"] and len(whole["context"]) == 33 + 8
    assert whole["prompt_eval_count"] == 33, "tokens in the cache count, too"


def test_chat(server):
    request = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}], "options": GREEDY}
    line = {"model": "smollm2", "created_at": re.compile(TIME), "message": {"role": "assistant", "content": str}, "done": False}
    last = line | {"done": True, "done_reason": "length"} | DURATIONS
    *lines, final = [json.loads(text) for text in server.post("/api/chat", request).text.splitlines()]
    for text in lines:
        check(text, line)
    check(final, last | {"message": {"role": "assistant", "content": ""}})
    check_durations(final)
    whole = server.ask("/api/chat", request | {"stream": False})
    check(whole, last)
    assert whole["message"]["content"] == "".join(text["message"]["content"] for text in lines)


EVERY_OPTION = {
    "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9, "seed": 7, "num_predict": 6, "num_ctx": 2048,
    "num_keep": 2, "stop": ["nowhere"], "repeat_last_n": 32, "repeat_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5,
    "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "num_gpu": 0, "num_thread": 1,
}  # fmt: skip


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_options(server, path):
    prompt = {"prompt": "Tell a story."} if path == "/api/generate" else {"messages": [{"role": "user", "content": "Tell a story."}]}

    def ask(options: dict) -> dict:
        return server.ask(path, {"model": "smollm2", "stream": False, "options": options} | prompt)

    def text(answer: dict) -> str:
        return answer["response"] if path == "/api/generate" else answer["message"]["content"]

    answer = ask(EVERY_OPTION)
    assert answer["eval_count"] == 6 and answer["done_reason"] == "length"
    assert text(ask(EVERY_OPTION)) == text(answer), "the seed decides"
    longer = {"num_predict": 24, "temperature": 1.5}
    assert text(ask(longer | {"seed": 1})) != text(ask(longer | {"seed": 2}))
    assert text(ask(longer | {"seed": 1, "top_k": 1})) == text(ask(longer | {"seed": 2, "top_k": 1})), "there is only one choice"
    (loaded,) = server.get("/api/ps").json()["models"]
    assert loaded["context_length"] == 2048


def test_a_stop_text_ends_the_answer(server):
    request = {"model": "smollm2", "prompt": "Once upon a time", "raw": True, "stream": False}
    text = server.ask("/api/generate", request | {"options": GREEDY})["response"]
    stop = text[len(text) // 2 :]
    answer = server.ask("/api/generate", request | {"options": GREEDY | {"stop": ["nowhere", stop]}})
    assert (answer["done_reason"], answer["response"]) == ("stop", text[: text.index(stop)])
    assert "context" not in answer, "raw answers have none"


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_loading(server, path):
    part = {"response": ""} if path == "/api/generate" else {"message": {"role": "assistant", "content": ""}}
    shape = {"model": "smollm2", "created_at": re.compile(TIME), "done": True, "done_reason": "load"} | part
    check(server.ask(path, {"model": "smollm2"}), shape)


def test_embed(server):
    shape = {"model": "smollm2", "embeddings": list, "total_duration": int, "load_duration": int, "prompt_eval_count": int}
    answer = server.ask("/api/embed", {"model": "smollm2", "input": ["The sky is blue.", "Fish"]})
    check(answer, shape)
    assert [len(vector) for vector in answer["embeddings"]] == [576, 576]
    for vector in answer["embeddings"]:
        assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-3)
    one = server.ask("/api/embed", {"model": "smollm2", "input": "The sky is blue."})
    assert one["embeddings"][0] == pytest.approx(answer["embeddings"][0], abs=1e-2)
    assert one["prompt_eval_count"] == 5
    assert server.ask("/api/embed", {"model": "smollm2", "input": []})["embeddings"] == []
    short = server.ask("/api/embed", {"model": "smollm2", "input": "Fish", "dimensions": 64})["embeddings"][0]
    assert len(short) == 64 and sum(number * number for number in short) == pytest.approx(1, abs=1e-3)


def test_embed_cuts_what_is_too_long(server):
    text = "word " * 3000
    assert server.ask("/api/embed", {"model": "smollm2", "input": text})["prompt_eval_count"] == 2047
    refusal = server.post("/api/embed", {"model": "smollm2", "input": text, "truncate": False})
    assert refusal.status_code == 400 and "exceeds the context length" in refusal.json()["error"]


def test_embeddings(server):
    answer = server.ask("/api/embeddings", {"model": "smollm2", "prompt": "Fish"})
    check(answer, {"embedding": list})
    assert len(answer["embedding"]) == 576 and sum(number * number for number in answer["embedding"]) > 2


REFUSALS = [
    ("/api/generate", {"model": "nothing", "prompt": "x"}, 404, "model 'nothing' not found"),
    ("/api/chat", {"model": "nothing"}, 404, "model 'nothing' not found"),
    ("/api/show", {"model": "nothing"}, 404, "not found"),
    ("/api/generate", {"prompt": "x"}, 400, "model is required"),
    ("/api/generate", {"model": "smollm2", "prompt": "x", "images": ["aGk="]}, 400, "vision"),
    ("/api/chat", {"model": "smollm2", "messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "vision"),
    ("/api/generate", {"model": "smollm2", "prompt": "x", "suffix": "y"}, 400, "does not support insert"),
    ("/api/generate", {"model": "smollm2", "prompt": "x", "raw": True, "system": "y"}, 400, "raw mode does not support"),
    ("/api/generate", {"model": "smollm2", "prompt": "x", "template": "{{ range .Messages }}"}, 400, "template"),
    ("/api/generate", {"model": "smollm2", "prompt": "x", "format": "yaml"}, 400, "invalid format"),
    ("/api/generate", {"model": "smollm2", "prompt": "x", "options": {"top_k": "many"}}, 400, "top_k"),
    ("/api/generate", {"model": "smollm2", "prompt": "x", "think": True}, 400, "does not support thinking"),
    ("/api/chat", {"model": "smollm2", "messages": [{"role": "robot", "content": "x"}]}, 400, "robot"),
    ("/api/chat", {"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 400, "does not support tools"),
    ("/api/generate", {"model": "smollm2", "prompt": "x", "keep_alive": "soon"}, 400, "keep_alive"),
    ("/api/generate", {"model": "smollm2", "prompt": "word " * 3000, "truncate": False}, 400, "context"),
    ("/api/chat", {"model": "smollm2", "messages": [{"role": "user", "content": "word " * 3000}], "truncate": False}, 400, "context"),
    ("/api/generate", {"model": "smollm2", "prompt": "x", "top_logprobs": 21}, 400, "between 0 and 20"),
    ("/api/chat", {"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "top_logprobs": -1}, 400, "between 0 and 20"),
    ("/api/me", {}, 401, "no accounts"),
    ("/api/pull", {"model": "x"}, 404, "only models of the Hugging Face hub"),
    ("/api/pull", {"model": "hf.co/o/r"}, 501, "hypura serve DIR"),
    ("/api/push", {"model": "x"}, 501, "push is not supported"),
    ("/api/create", {"model": "x"}, 501, "create is not supported"),
    ("/api/copy", {"source": "x", "destination": "y"}, 501, "copy is not supported"),
    ("/api/nothing", {}, 404, "there is no /api/nothing"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), REFUSALS, ids=[f"{r[0]}-{r[3]}" for r in REFUSALS])
def test_refusals(server, path, body, status, words):
    response = server.post(path, body)
    assert response.status_code == status, response.text
    check(response.json(), {"error": str})
    assert words in response.json()["error"]


def test_requests_that_are_no_json(server):
    for data, words in [(b"", "missing request body"), (b"{", "not understood"), (b"\xff", "not understood")]:
        response = server.post("/api/generate", data=data)
        assert response.status_code == 400 and words in response.json()["error"]
    assert server.get("/api/generate").status_code == 405
    assert server.post("/api/tags").json() == {"error": "405 method not allowed"}
    delete = requests.delete(server.url + "/api/delete", json={"model": "smollm2"}, timeout=60)
    assert delete.status_code == 501 and "delete is not supported" in delete.json()["error"]


def anthropic_error(server, body: dict) -> dict:
    response = server.post("/v1/messages", body)
    assert response.status_code >= 400
    check(response.json(), {"type": "error", "error": {"type": re.compile("invalid_request_error|api_error"), "message": str}})
    return response.json()["error"]


def test_v1_refuses_what_it_would_drop_and_errors_have_the_api_s_form(server):
    message = {"role": "user", "content": "x"}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    refusal = server.post("/v1/chat/completions", {"model": "smollm2", "messages": [message], "tools": tools})
    assert refusal.status_code == 400 and "does not support tools" in refusal.json()["error"]["message"]
    tool = {"name": "f", "input_schema": {"type": "object"}}
    assert "does not support tools" in anthropic_error(server, {"max_tokens": 4, "messages": [message], "tools": [tool]})["message"]
    assert anthropic_error(server, {"max_tokens": 4})["message"]


def test_v1_embeddings_of_fewer_dimensions(server):
    request = {"model": "smollm2", "input": ["Fish", "Fowl"], "dimensions": 64}
    vectors = [item["embedding"] for item in server.ask("/v1/embeddings", request)["data"]]
    assert [len(vector) for vector in vectors] == [64, 64]
    assert sum(number * number for number in vectors[0]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_what_is_too_long_is_shortened(server, path):
    """As in Ollama: not only old messages go, but what is left of the context's length is kept of a single text."""
    text = "word " * 3000 + "The capital of France is"
    for prompt in ({"prompt": text}, {"prompt": text, "raw": True}) if path == "/api/generate" else ({"messages": [{"role": "user", "content": text}]},):
        answer = server.ask(path, {"model": "smollm2", "stream": False, "options": GREEDY} | prompt)
        assert 1024 < answer["prompt_eval_count"] < 2048 and answer["eval_count"] > 0


def test_an_answer_goes_on_when_its_context_is_full(server):
    long = {"model": "smollm2", "prompt": "word " * 2025, "raw": True, "stream": False, "options": {"temperature": 0, "num_predict": 40}}
    assert server.ask("/api/generate", long)["eval_count"] == 40
    stopped = server.ask("/api/generate", long | {"shift": False})
    assert stopped["done_reason"] == "length" and stopped["eval_count"] < 30
