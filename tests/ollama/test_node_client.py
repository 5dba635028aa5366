"""Ollama's own JavaScript client, from npm."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hypura_server import REPOSITORY, TIMEOUT_SECONDS, wait_until

PACKAGES = Path(os.environ.get("HYPURA_TEST_NODE", REPOSITORY / "build" / "node"))


def test_javascript_client(server):
    if shutil.which("node") is None:
        pytest.skip("node is absent; on Debian: apt install nodejs npm")
    if not (PACKAGES / "node_modules" / "ollama").exists():
        pytest.skip(f"npm's ollama is not in {PACKAGES}: make test-ollama installs it where there is npm")
    script = Path(__file__).with_name("node") / "client.mjs"
    run = subprocess.run(["node", script, server.url, PACKAGES], capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert run.returncode == 0, run.stderr
    got = json.loads(run.stdout)
    assert got["models"] == got["running"] == ["smollm2:latest"] and got["family"] == "llama"
    assert got["chat"] == got["streamed"] != ""
    assert got["generated"] == 8 and got["embedded"] == [576, 576]
    assert isinstance(got["structured"]["city"], str)
    assert got["aborted"] == "AbortError" and "not supported" in got["refused"]
    wait_until(lambda: server.busy_slots() == 0, "cancelling the aborted request", 30)
