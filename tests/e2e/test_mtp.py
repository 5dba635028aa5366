"""Speculation by a model's own layers for it (MTP): a second context of another kind, over the same streamed weights."""

import json
from pathlib import Path

import pytest

from models import architecture
from programs import OFF
from server import Server

BODY = {"prompt": "The harbour freezes", "n_predict": 12, "ignore_eos": True}


@pytest.mark.parametrize("name", ["glm4moe", "qwen35moe"])
def test_layers_that_draft_are_streamed_too(name: str, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    streamed = {"HYPURA": "stream", "HYPURA_TENSORS": "all", "HYPURA_RAM": "2M", "HYPURA_STATS": str(stats)}
    texts = []
    for settings in (OFF, streamed):
        with Server(architecture(name).path, settings, tmp_path, "--spec-type", "draft-mtp") as server:
            answer = server.post("/completion", BODY).json()
            assert answer["timings"]["draft_n"] > 0, "nothing was drafted"
            texts.append(answer["content"])
    assert texts[0] == texts[1] != ""
    figures = json.loads(stats.read_text())
    assert figures["read_bytes"] > 0 and figures["errors"] == 0
