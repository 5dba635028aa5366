"""Prompts outlive the server: after a restart a long system prompt is not computed again, and the answer is the same."""

import shutil
from pathlib import Path

from hypura_server import GREEDY, SMOLLM2, HypuraServer
from test_reload import other_weights

SYSTEM = "You answer in one short sentence. " + " ".join(f"Rule {number}: the number {number} is never mentioned." for number in range(20))


def serve(place: Path, cache: Path | str, *arguments: str | Path, model: Path = SMOLLM2) -> HypuraServer:
    through = ("env", f"HYPURA_CACHE={cache}", f"XDG_CACHE_HOME={place / 'user'}")
    return HypuraServer(model, place, "--ctx", "2048", "--parallel", "1", *arguments, through=through)


def ask(server: HypuraServer, question: str) -> tuple[str, dict]:
    """The answer, and how many tokens of the prompt were computed (prompt_n) and were there (cache_n)."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    request = {"messages": messages, "temperature": 0, "seed": 1, "max_tokens": GREEDY["num_predict"]}
    answer = server.ask("/v1/chat/completions", request)
    return answer["choices"][0]["message"]["content"], answer["timings"]


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "prompts").iterdir())


def test_a_restart(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serve(tmp_path, cache, "--keep-prompts", "0") as server:
        ask(server, "What is the sun?")
        expected, _ = ask(server, "What is rain?")
    assert not (cache / "prompts").exists()

    with serve(tmp_path, cache, "--keep-prompts", "1G") as server:
        _, timings = ask(server, "What is the sun?")
        assert timings["prompt_n"] > 200, timings
    (prompt,) = kept(cache)
    assert prompt.stat().st_mode & 0o777 == 0o600 and prompt.parent.stat().st_mode & 0o777 == 0o700
    assert "are kept for the next start" in server.log

    with serve(tmp_path, cache, "--keep-prompts", "1M") as server:
        answer, timings = ask(server, "What is rain?")
        assert answer == expected
        assert timings["cache_n"] > 200 and timings["prompt_n"] < 50, timings
    # More than the bound: neither this one's nor the older one's is left.
    assert kept(cache) == []


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """A file that is no state, and a cache that is switched off."""
    cache = tmp_path / "cache"
    with serve(tmp_path, cache, "--keep-prompts", "1G") as server:
        ask(server, "What is the sun?")
    (prompt,) = kept(cache)
    prompt.write_bytes(prompt.read_bytes()[:100_000])
    with serve(tmp_path, cache, "--keep-prompts", "1G") as server:
        _, timings = ask(server, "What is the sun?")
        assert timings["cache_n"] == 0, timings
        assert "is of no use" in server.log
    with serve(tmp_path, "off", "--keep-prompts", "1G") as server:
        ask(server, "What is the sun?")
    assert not list(tmp_path.glob("user/**/*.prompt"))


def found(place: Path, *arguments: str | Path, model: Path) -> int:
    """Tokens of the prompt that a start with these arguments finds; it keeps them for the next."""
    with serve(place, place / "cache", "--keep-prompts", "1G", *arguments, model=model) as server:
        return ask(server, "What is the sun?")[1]["cache_n"]


def test_what_was_kept_for_another_model_or_other_settings_is_not_used(tmp_path: Path) -> None:
    """Each such state would be a wrong one: keys and values of other weights, or in another form."""
    model, template = tmp_path / "copy.gguf", tmp_path / "template.jinja"
    shutil.copyfile(SMOLLM2, model)
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}")
    assert found(tmp_path, model=model) == 0
    settings = ("--", "--cache-type-k", "q8_0", "--chat-template-file", template)
    assert found(tmp_path, *settings, model=model) == 0
    # What a setting names counts as well, not only what it is called.
    template.write_text(template.read_text() + " ")
    assert found(tmp_path, *settings, model=model) == 0
    assert found(tmp_path, model=model) > 200, "what was kept first is still there"

    model.write_bytes(other_weights(SMOLLM2))
    assert found(tmp_path, model=model) == 0
