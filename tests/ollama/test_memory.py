"""The server in a memory limit: what it keeps of prompts leaves weights their memory."""

import os
import re
import sys

from hypura_server import REPOSITORY, SMOLLM2, HypuraServer, wait_until

sys.path.append(str(REPOSITORY / "tests" / "e2e"))
from memory_cgroup import memory_limit  # noqa: E402

SENTENCE = "The harbour freezes in the middle of December, and from then until spring the island lives on what it has put away. "


def test_prompts_that_are_kept_leave_weights_their_memory(tmp_path):
    with memory_limit(300 << 20) as through:
        with HypuraServer(SMOLLM2, tmp_path, "--stream", "--ctx", "1280", "--parallel", "1", "--", "-t", "1", through=through) as server:
            server.ask("/api/generate", {"model": "smollm2"})
            (llama_server,) = server.llama_servers()
            budgets = []
            for number in range(8):
                prompt = f"Chapter {number}. " + SENTENCE * 38
                body = {"model": "smollm2", "prompt": prompt, "raw": True, "stream": False, "options": {"num_predict": 4}}
                assert server.ask("/api/generate", body)["prompt_eval_count"] > 800
                budgets.append(server.get("/hypura/figures").json()["statistics"]["budget_bytes"])
            assert budgets[-1] > budgets[0] // 2, budgets
            assert server.llama_servers() == [llama_server], server.log
        assert re.search(r"no more than \d+ MiB for prompts that are kept", server.log)


def test_memory_of_gpus(tmp_path):
    """As NVIDIA's tool tells it, here in its place a script that says 100 MiB of each llama-server."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nfor process in $(pgrep -x llama-server); do echo "$process, 100"; done\n')
    tool.chmod(0o755)
    through = ("env", f"PATH={tmp_path}:{os.environ['PATH']}")
    with HypuraServer(SMOLLM2, tmp_path, "--ctx", "512", through=through) as server:
        server.ask("/api/generate", {"model": "smollm2"})
        asked = []
        # On a busy machine the tool is not waited for.
        wait_until(lambda: asked.append(server.get("/api/ps").json()["models"][0]) or asked[-1]["size_vram"], "an answer of the tool")
    running = asked[-1]
    assert running["size_vram"] == 100 << 20 and running["size"] > running["size_vram"]
