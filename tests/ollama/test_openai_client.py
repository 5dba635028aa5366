"""OpenAI's Python client, against `/v1`, which is llama-server's own."""

import openai
import pytest

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def test_models(client):
    assert [model.id for model in client.models.list()] == ["smollm2:latest"]
    assert client.models.retrieve("smollm2").owned_by == "library"
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.models.retrieve("nothing")


def test_chat_and_its_stream_are_the_same(client):
    request = {"model": "smollm2", "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
    whole = client.chat.completions.create(**request)
    parts = list(client.chat.completions.create(**request, stream=True))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content != ""
    assert whole.usage.completion_tokens == 8 and whole.model == "smollm2:latest"


def test_completion_and_embeddings(client):
    completion = client.completions.create(model="smollm2", prompt="1 2 3 4", temperature=0, max_tokens=4)
    assert completion.choices[0].text.strip().startswith("5")
    embedded = client.embeddings.create(model="smollm2", input=["a", "b"])
    assert [len(item.embedding) for item in embedded.data] == [576, 576]


def test_an_error_is_llama_servers(client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "word " * 3000}])
