"""The server in a memory limit: what it keeps of prompts leaves weights their memory."""

import re
import sys

from hypura_server import REPOSITORY, SMOLLM2, HypuraServer

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
