"""llama-server without a model of its own: it starts a server for each model that is asked for."""

import json
import shutil
from pathlib import Path

import requests

from models import SMOLLM2, SMOLLM2_MOE
from programs import OFF, TIMEOUT_SECONDS
from server import Server

PROMPT, TOKENS = "The capital of Norway is", 12


def router(folder: Path, settings: dict[str, str], scratch: Path) -> Server:
    server = Server(folder, settings, scratch, "--models-max", "1")
    where = server.command.index("-m")
    server.command[where : where + 2] = ["--models-dir", folder]
    return server


def texts(folder: Path, settings: dict[str, str], scratch: Path) -> list[str]:
    """The answers of two models in turn, of which one is loaded at a time."""
    body = {"prompt": PROMPT, "n_predict": TOKENS}
    with router(folder, settings, scratch) as server:
        names = {model["id"] for model in requests.get(f"{server.url}/models", timeout=TIMEOUT_SECONDS).json()["data"]}
        assert {"dense", "mixture"} <= names
        return [server.text("/completion", body | {"model": name}) for name in ("mixture", "dense")]


def test_models_of_a_router_are_streamed(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for name, model in (("mixture", SMOLLM2_MOE), ("dense", SMOLLM2)):
        shutil.copyfile(model.path, folder / f"{name}.gguf")
    stats = tmp_path / "stats.json"
    settings = {"HYPURA": "stream", "HYPURA_RAM": "48M", "HYPURA_STATS": str(stats)}
    streamed = texts(folder, settings, tmp_path)
    assert streamed == texts(folder, OFF, tmp_path)
    assert all(len(text.strip()) > 5 for text in streamed)
    # that of the model that was asked last
    figures = json.loads(stats.read_text())
    assert figures["mode"] == "dense-streaming" and figures["read_bytes"] > 0 and figures["errors"] == 0
