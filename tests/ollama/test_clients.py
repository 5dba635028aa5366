"""The newest clients of others, each in its own words: list, show, chat, stream, tools, schema, embeddings, log probabilities.

They live in an environment of their own (build/clients): what they need is no business of the other tests.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from hypura_server import REPOSITORY, SMOLLM2, TEMPLATES, TIMEOUT_SECONDS, HypuraServer, environment

PYTHON = Path(os.environ.get("HYPURA_TEST_CLIENTS", REPOSITORY / "build" / "clients")) / "bin" / "python"
PACKAGES = Path(os.environ.get("HYPURA_TEST_NODE", REPOSITORY / "build" / "node"))
SCRIPTS = Path(__file__).with_name("clients")

# What a client has calls for.
ALL = {"chat", "stream", "tools"}
CLIENTS = {
    "openai": ALL | {"list", "show", "schema", "embeddings", "logprobs", "responses"},
    "anthropic": ALL | {"list", "show", "tokens", "error"},
    "langchain": ALL | {"schema", "embeddings", "logprobs"},
    "litellm": ALL | {"schema", "embeddings", "logprobs"},
}
EXPECTED = {
    "list": ["smollm2:latest"],
    "show": "smollm2:latest",
    "tools": ["get_weather", {"city": "Paris"}],
    "embeddings": [576, 576],
    "error": "400 error",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """SmolLM2 with the chat template of a model that knows tools."""
    template = TEMPLATES / "Qwen-Qwen2.5-7B-Instruct.jinja"
    place = tmp_path_factory.mktemp("clients")
    with HypuraServer(SMOLLM2, place, "--ctx", "2048", "--parallel", "1", "--", "--chat-template-file", template) as running:
        yield running


def drive(command: list[str | Path]) -> dict:
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("client", CLIENTS)
def test_python(server: HypuraServer, client: str) -> None:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing: make test-ollama makes it")
    check(drive([PYTHON, SCRIPTS / f"{client}_client.py", server.url]), CLIENTS[client])


def test_ai_sdk(server: HypuraServer) -> None:
    if not (PACKAGES / "node_modules" / "ai").exists():
        pytest.skip(f"npm's ai is not in {PACKAGES}: make test-ollama installs it where there is npm")
    check(drive(["node", Path(__file__).with_name("node") / "ai_sdk.mjs", server.url, PACKAGES]), ALL | {"schema", "embeddings"})


def check(got: dict, wanted: set[str]) -> None:
    assert set(got) == wanted
    assert got["chat"] == got["stream"] != ""
    for name in EXPECTED.keys() & got.keys():
        assert got[name] == EXPECTED[name], name
    # The alternatives of each token.
    assert set(got.get("logprobs", [2])) == {2}
    assert list(json.loads(got.get("schema", '{"city": 0}'))) == ["city"]
    assert got.get("responses", got["chat"]) == got["chat"]
    assert got.get("tokens", 1) > 0
