"""An unmodified llama-server: four clients at once, both APIs, the same text as with everything in memory."""

import json

import pytest

from conftest import require
from models import SMOLLM2, SMOLLM2_MOE, TRAINED_MOE, Model
from programs import OFF
from server import Server

TOKENS = 24
PROMPTS = [
    "The capital of Norway is",
    "To make bread, you need",
    "def average(numbers):\n",
    "Once upon a time there was a small town by the sea, and in it",
]
COMPLETIONS = [("/completion", {"prompt": prompt}) for prompt in PROMPTS]
CHATS = [("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}) for prompt in PROMPTS]


def streaming(model: Model, share: float, stats) -> dict[str, str]:
    return {"HYPURA": "stream", "HYPURA_RAM": str(int(share * model.streamable_bytes)), "HYPURA_STATS": str(stats)}


@pytest.mark.parametrize("model", [SMOLLM2, SMOLLM2_MOE, TRAINED_MOE], ids=lambda model: model.name)
def test_four_clients_at_once_get_the_text_of_the_resident_server(model: Model, tmp_path) -> None:
    """Both APIs; the batches are the same on both servers (see Server.texts_in_lock_step)."""
    require(model)
    stats = tmp_path / "stats.json"
    answers = []
    for settings in (OFF, streaming(model, 0.3, stats)):
        with Server(model.path, settings, tmp_path, "--no-kv-unified") as server:
            answers.append([server.texts_in_lock_step(four, TOKENS) for four in (COMPLETIONS, CHATS)])
    assert answers[0] == answers[1]
    assert all(len(text.strip()) > 10 for texts in answers[0] for text in texts)
    figures = json.loads(stats.read_text())
    assert figures["mode"] == model.streaming_mode
    assert figures["read_bytes"] > 0 and figures["errors"] == 0


def test_clients_that_come_and_go(tmp_path) -> None:
    """Default flags, twelve requests of unlike length by four clients: all are served, every weight is verified."""
    stats = tmp_path / "stats.json"
    bodies = [
        (path, body | {"n_predict": 4 + 2 * index, "max_tokens": 4 + 2 * index})
        for index, (path, body) in enumerate(COMPLETIONS + CHATS)
    ]
    with Server(SMOLLM2_MOE.path, streaming(SMOLLM2_MOE, 0.3, stats) | {"HYPURA_VERIFY": "1"}, tmp_path) as server:
        for first in range(0, len(bodies), 4):
            assert all(server.texts(bodies[first : first + 4]))
        assert all(server.texts(bodies[2:6]))
    figures = json.loads(stats.read_text())
    assert figures["mode"] == "expert-streaming"
    assert figures["expert_misses"] > 0 and figures["errors"] == 0


def test_a_draft_model_changes_no_text(tmp_path) -> None:
    """Speculative decoding, the model being its own draft: both are streamed, and the greedy text stays the same."""
    model = SMOLLM2_MOE
    stats = tmp_path / "stats.json"
    texts = []
    for settings in (OFF, streaming(model, 0.2, stats)):
        draft = ["--model-draft", str(model.path), "--spec-type", "draft-simple", "--spec-draft-n-max", "4"]
        with Server(model.path, settings, tmp_path, *draft) as server:
            response = server.post("/completion", {"prompt": PROMPTS[0], "n_predict": TOKENS, "id_slot": 0}).json()
            assert response["timings"]["draft_n"] > 0, "nothing was drafted"
            assert response["timings"]["draft_n_accepted"] > 0, "no draft was accepted"
            texts.append(response["content"])
    assert texts[0] == texts[1]
    assert json.loads(stats.read_text())["errors"] == 0
