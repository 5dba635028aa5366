"""Pictures: a projector beside the model is found, and what it sees reaches the answer, whichever API is asked."""

import base64
import json
import struct
import subprocess
from pathlib import Path

import ollama
import openai
import pytest

from hypura_server import GREEDY, HYPURA, NO_REPACK, PROJECTOR, REPOSITORY, SMOLLM2, STREAMED, HypuraServer, environment
from pictures import QUESTION, address, png, seen_in

OPTIONS = GREEDY | {"num_predict": 16}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A directory that gets the projector while it is served: it must be noticed without a restart."""
    place = tmp_path_factory.mktemp("seeing")
    (place / "models").mkdir()
    (place / "models" / "smollm2.gguf").symlink_to(SMOLLM2)
    with HypuraServer(place / "models", place, *STREAMED, "--ctx", "1024", "--parallel", "1") as running:
        assert "vision" not in running.get("/api/tags").json()["models"][0]["capabilities"]
        refused = running.post("/api/chat", {"model": "smollm2", "messages": [{"role": "user", "content": "?", "images": ["aGk="]}]})
        assert refused.status_code == 400 and "does not support vision" in refused.json()["error"]
        (place / "models" / "mmproj-smollm2.gguf").symlink_to(PROJECTOR)
        yield running


@pytest.mark.parametrize("colour", ["red", "green"])
def test_chat(server: HypuraServer, colour: str) -> None:
    message = ollama.Message(role="user", content=QUESTION, images=[ollama.Image(value=png(colour))])
    answer = ollama.Client(server.url).chat("smollm2", [message], options=OPTIONS)
    assert seen_in(answer.message.content) == {colour}, answer.message.content


def test_generate(server: HypuraServer) -> None:
    client = ollama.Client(server.url)
    answer = client.generate("smollm2", QUESTION, images=[png("green")], options=OPTIONS)
    assert seen_in(answer.response) == {"green"} and answer.context, answer
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    raw = f"{system}<|im_start|>user\nRepeat this word: [img-0]<|im_end|>\n<|im_start|>assistant\n"
    answer = client.generate("smollm2", raw, images=[png("red")], raw=True, options=OPTIONS)
    assert seen_in(answer.response) == {"red"}, answer.response
    refused = {"model": "smollm2", "prompt": "?", "context": [1, 2], "images": [base64.b64encode(png("red")).decode()]}
    assert server.post("/api/generate", refused).status_code == 400


def test_openai(server: HypuraServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-")

    def ask(url: str) -> str:
        content = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": url}}]
        answer = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": content}], temperature=0, max_completion_tokens=16
        )
        return answer.choices[0].message.content

    assert seen_in(ask(address("red"))) == {"red"}
    with pytest.raises(openai.BadRequestError, match="not fetched"):
        ask(f"{server.url}/hypura")


def test_sound(server: HypuraServer) -> None:
    """This projector sees and does not hear: whichever way sound comes, the answer says so, and none is taken for a picture."""
    sound = base64.b64encode(b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16) + b"data\0\0\0\0")
    with pytest.raises(ollama.ResponseError, match="does not support audio: no projector"):
        ollama.Client(server.url).chat("smollm2", [ollama.Message(role="user", content="?", images=[ollama.Image(value=sound.decode())])])
    with pytest.raises(ollama.ResponseError, match="does not support audio: no projector"):
        ollama.Client(server.url).generate("smollm2", "?", images=[sound.decode()])
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)

    def ask(data: str) -> None:
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": [part]}])

    with pytest.raises(openai.APIStatusError, match="audio input is not supported"):
        ask(sound.decode())
    with pytest.raises(openai.BadRequestError, match="not fetched"):
        ask(f"{server.url}/hypura")


def test_what_is_told_of_it(server: HypuraServer) -> None:
    shown = server.ask("/api/show", {"model": "smollm2"})
    assert "vision" in shown["capabilities"] and "audio" not in shown["capabilities"]
    assert shown["projector_info"]["clip.projector_type"] == "phi4"
    told = server.get("/api/tags").json()["models"][0]
    assert told["size"] == SMOLLM2.stat().st_size + plan(SMOLLM2, "--mmproj", PROJECTOR)["projector_bytes"]


def plan(*arguments: str | Path) -> dict:
    output = subprocess.run([HYPURA, "plan", *arguments, "--json"], env=environment(), capture_output=True, check=True).stdout
    return json.loads(output)


def test_plan() -> None:
    """Its weights are counted: in RAM, or on a GPU that has room for them."""
    without, with_it = plan(SMOLLM2, "--ram", "1G"), plan(SMOLLM2, "--ram", "1G", "--mmproj", PROJECTOR)
    assert without["projector_bytes"] == 0 and 0.9 * PROJECTOR.stat().st_size < with_it["projector_bytes"] < PROJECTOR.stat().st_size
    tight = str(without["kv_cache_bytes"] + with_it["projector_bytes"] - 1)
    refused = subprocess.run(
        [HYPURA, "plan", SMOLLM2, "--ram", tight, "--mmproj", PROJECTOR], env=environment(), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1 and "and the projector" in refused.stderr, refused.stderr
    assert plan(SMOLLM2, "--ram", "1G", "--gpu", "1G", "--mmproj", PROJECTOR)["projector_bytes"] == 0


def test_run(tmp_path: Path) -> None:
    """The answer alone is on standard output."""
    (tmp_path / "red.png").write_bytes(png("red"))
    command = [HYPURA, "run", SMOLLM2, "--llama", REPOSITORY / "build/llama/bin", *STREAMED, "-p", QUESTION, "--image", tmp_path / "red.png"]
    more = ["-n", "16", "--", "--temp", "0", *NO_REPACK]
    answered = subprocess.run([*command, "--mmproj", PROJECTOR, *more], env=environment(), capture_output=True, text=True, check=True)
    assert seen_in(answered.stdout) == {"red"} and len(answered.stdout.split()) < 20, answered.stdout
    refused = subprocess.run([*command, *more], env=environment(), capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "--mmproj" in refused.stderr, refused.stderr
