"""Ollama's own Python client, from PyPI."""

import asyncio
import json

import ollama
import pytest
from pydantic import BaseModel

from hypura_server import GREEDY, SMOLLM2, STREAMED, TEMPLATES, HypuraServer

MESSAGES = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(server) -> ollama.Client:
    return ollama.Client(server.url)


def test_models(client):
    assert [model.model for model in client.list().models] == ["smollm2:latest"]
    assert client.show("smollm2").capabilities == ["completion"]
    assert client.generate("smollm2").done_reason == "load"
    (running,) = client.ps().models
    assert running.model == "smollm2:latest" and running.context_length == 2048


def test_generate_and_its_stream_are_the_same(client):
    whole = client.generate("smollm2", "The capital of France is", options=GREEDY, system="You are brief.")
    parts = list(client.generate("smollm2", "The capital of France is", options=GREEDY, system="You are brief.", stream=True))
    assert "".join(part.response for part in parts) == whole.response != ""
    assert whole.eval_count == parts[-1].eval_count == 8 and parts[-1].done


def test_context_continues_a_conversation(client):
    first = client.generate("smollm2", "My name is Ada.", options=GREEDY)
    second = client.generate("smollm2", "What is my name?", context=first.context, options=GREEDY)
    assert second.context[: len(first.context)] == first.context
    assert second.prompt_eval_count > first.prompt_eval_count + first.eval_count


def test_raw_and_own_template_reach_the_model_as_written(client):
    raw = client.generate("smollm2", "[Q] 2+2? [A]", raw=True, options=GREEDY)
    own = client.generate("smollm2", "2+2?", template="[Q] {{ .Prompt }} [A]{{ .Response }}", options=GREEDY)
    assert raw.response == own.response and raw.prompt_eval_count == own.prompt_eval_count


def test_chat_is_what_llama_server_says_itself(client, server):
    whole = client.chat("smollm2", MESSAGES, options=GREEDY)
    parts = list(client.chat("smollm2", MESSAGES, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    # Ollama's defaults, which matter even for greedy text, in llama-server's words.
    own = {"model": "smollm2", "messages": MESSAGES, "temperature": 0, "max_tokens": 8, "top_p": 0.9, "min_p": 0}
    assert server.ask("/v1/chat/completions", own)["choices"][0]["message"]["content"] == whole.message.content


def test_roles_as_others_call_them(client):
    """OpenAI's developer is the system, and Ollama's clients write roles as they like."""
    other = [{"role": "developer", "content": MESSAGES[0]["content"]}, {"role": "User", "content": MESSAGES[1]["content"]}]
    assert client.chat("smollm2", other, options=GREEDY).message == client.chat("smollm2", MESSAGES, options=GREEDY).message


def test_a_conversation_that_is_too_long_loses_its_oldest(client):
    old = [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "Yes."}] * 3
    answer = client.chat("smollm2", [MESSAGES[0], *old, MESSAGES[1]], options=GREEDY)
    assert answer.prompt_eval_count < 2048 and answer.message.content


def test_async(server):
    async def run() -> tuple[str, str, list]:
        client = ollama.AsyncClient(server.url)
        whole, embedded = await asyncio.gather(
            client.chat("smollm2", MESSAGES, options=GREEDY), client.embed("smollm2", ["a", "b"])
        )
        parts = [part.message.content async for part in await client.chat("smollm2", MESSAGES, options=GREEDY, stream=True)]
        return whole.message.content, "".join(parts), embedded.embeddings

    whole, streamed, embeddings = asyncio.run(run())
    assert whole == streamed != "" and len(embeddings) == 2


class Country(BaseModel):
    name: str
    population_millions: int


def test_structured_output(client):
    options = GREEDY | {"num_predict": 100}
    answer = client.chat("smollm2", [{"role": "user", "content": "Tell me about Norway."}], format=Country.model_json_schema(), options=options)
    assert Country.model_validate_json(answer.message.content)
    answer = client.generate("smollm2", "Tell me about Norway as JSON.", format="json", options=GREEDY | {"num_predict": 300})
    assert answer.done_reason == "length" or isinstance(json.loads(answer.response), dict)
    raw = client.generate("smollm2", "Norway:", raw=True, format=Country.model_json_schema(), options=options)
    assert Country.model_validate_json(raw.response)


class Reasoned(BaseModel):
    reasoning: str
    name: str
    answer: str


def test_keys_keep_their_order(client):
    options = GREEDY | {"num_predict": 200}
    question = [{"role": "user", "content": "Which is the largest planet? Answer briefly."}]
    schema = Reasoned.model_json_schema()
    schema["properties"] |= {name: {"type": "string", "maxLength": 20} for name in schema["properties"]}
    answer = client.chat("smollm2", question, format=schema, options=options)
    assert list(json.loads(answer.message.content)) == ["reasoning", "name", "answer"]


@pytest.mark.parametrize("count", [None, 0, 3])
def test_logprobs(client, count):
    more = {"logprobs": True} | ({} if count is None else {"top_logprobs": count})
    chat = client.chat("smollm2", MESSAGES, options=GREEDY, **more)
    assert len(chat.logprobs) == 8 and all(token.logprob <= 0 for token in chat.logprobs)
    assert "".join(token.token for token in chat.logprobs) == chat.message.content
    for token in chat.logprobs:
        alternatives = [other.token for other in token.top_logprobs or []]
        assert len(alternatives) == (count or 0)
        assert not alternatives or alternatives[0] == token.token, "greedy: the most probable"
    parts = list(client.chat("smollm2", MESSAGES, options=GREEDY, stream=True, **more))
    streamed = [token for part in parts for token in part.logprobs or []]
    assert [token.token for token in streamed] == [token.token for token in chat.logprobs]
    text = client.generate("smollm2", "The capital of France is", raw=True, options=GREEDY, **more)
    assert "".join(token.token for token in text.logprobs) == text.response
    assert client.chat("smollm2", MESSAGES, options=GREEDY).logprobs is None


def test_embeddings(client):
    one, other, far = client.embed("smollm2", ["The cat sleeps.", "A cat is asleep.", "Shares fell by 3% on Monday."]).embeddings

    def likeness(first, second) -> float:
        return sum(x * y for x, y in zip(first, second))

    assert likeness(one, one) == pytest.approx(1, abs=1e-3) and likeness(one, other) > likeness(one, far)
    assert len(client.embeddings("smollm2", "The cat sleeps.").embedding) == 576


def test_errors_reach_the_caller(client):
    with pytest.raises(ollama.ResponseError, match="not found") as raised:
        client.chat("nothing", MESSAGES)
    assert raised.value.status_code == 404
    assert client.pull("smollm2").status == "success", "as in Ollama for a model that is there"
    for refused in (client.push, client.delete):
        with pytest.raises(ollama.ResponseError, match="not supported") as raised:
            refused("smollm2")
        assert raised.value.status_code == 501


def get_weather(city: str) -> str:
    """Get the weather of a city.

    Args:
        city: the name of the city
    """
    return f"sunny in {city}"


def asked_and_called(city: str) -> list[dict]:
    call = {"function": {"name": "get_weather", "arguments": {"city": city}}}
    return [{"role": "user", "content": f"What is the weather in {city}?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]


def test_tools(tmp_path):
    """SmolLM2 knows no tools. With the chat template of a model that does, and calls to imitate, it makes one."""
    template = TEMPLATES / "Qwen-Qwen2.5-7B-Instruct.jinja"
    with HypuraServer(SMOLLM2, tmp_path, *STREAMED, "--", "--chat-template-file", template) as server:
        client = ollama.Client(server.url)
        assert client.generate("smollm2").done_reason == "load"
        assert client.show("smollm2").capabilities == ["completion", "tools"]
        messages = [*asked_and_called("Oslo"), *asked_and_called("Rome"), {"role": "user", "content": "What is the weather in Paris?"}]
        options = GREEDY | {"num_predict": 60}
        answer = client.chat("smollm2", messages, tools=[get_weather], options=options)
        (call,) = answer.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
        assert answer.done_reason == "stop" and not answer.message.content
        parts = list(client.chat("smollm2", messages, tools=[get_weather], options=options, stream=True))
        assert [part.message.tool_calls for part in parts if part.message.tool_calls] == [[call]]

        # llama-server gives no probabilities in a stream with tools; the answer comes in another way.
        told = list(client.chat("smollm2", messages, tools=[get_weather], options=options, stream=True, logprobs=True))
        assert [part.message.tool_calls for part in told if part.message.tool_calls] == [[call]]

        # The result goes back, and the model goes on.
        messages += [answer.message, {"role": "tool", "tool_name": "get_weather", "content": get_weather(**call.function.arguments)}]
        final = client.chat("smollm2", messages, tools=[get_weather], options=GREEDY)
        assert final.prompt_eval_count > answer.prompt_eval_count


def test_thinking(tmp_path):
    """The template of a reasoning model begins its answers with reasoning, which llama-server ends after 12 tokens."""
    template = TEMPLATES / "Qwen-QwQ-32B.jinja"
    with HypuraServer(SMOLLM2, tmp_path, "--", "--chat-template-file", template, "--reasoning-budget", "12") as server:
        client = ollama.Client(server.url)
        # With it this model goes on after its reasoning.
        options = GREEDY | {"num_predict": 40, "repeat_penalty": 1.1}
        answer = client.chat("smollm2", [{"role": "user", "content": "What is 2+2?"}], think=True, options=options)
        assert answer.message.thinking and answer.message.content and "think>" not in answer.message.content
        assert "thinking" in client.show("smollm2").capabilities
        parts = list(client.generate("smollm2", "What is 2+2?", think=True, options=options, stream=True))
        thinking, text = ("".join(filter(None, texts)) for texts in zip(*((part.thinking, part.response) for part in parts)))
        assert thinking == answer.message.thinking and text == answer.message.content
        kinds = [bool(part.thinking) for part in parts]
        assert kinds == sorted(kinds, reverse=True), "reasoning comes first"
        most = {"model": "smollm2", "prompt": "What is 2+2?", "think": "max", "stream": False, "options": options}
        assert server.ask("/api/generate", most)["thinking"] == thinking, "a template that knows no max gets the most that it knows"
