"""Prompts that llama-server keeps take memory from weights: a limit for them is kept to, and none is told of before it is too late."""

import json
from pathlib import Path

from memory_cgroup import memory_limit
from models import SMOLLM2
from server import SENTENCE, Server

# Of about 900 tokens, each of another conversation, which take 20 MB to keep.
PROMPTS = [f"Chapter {number}. " + SENTENCE * 38 for number in range(8)]
ARGUMENTS = ["-np", "1", "-c", "1280", "-ub", "128", "-b", "128", "-t", "1"]


# Where the weights that stay, the context, buffers and the margin leave about as much as the others take: three prompts' worth.
LIMIT_BYTES = 270 << 20


def ask(server: Server, prompt: str) -> None:
    server.text("/completion", {"prompt": prompt, "n_predict": 4, "cache_prompt": True})
    assert server.process.poll() is None, server.log[-3000:]


def budget_bytes(stats: Path) -> int:
    return json.loads(stats.read_text())["budget_bytes"]


def test_a_limit_for_prompts_leaves_weights_their_memory(tmp_path) -> None:
    stats = tmp_path / "stats.json"
    with memory_limit(LIMIT_BYTES) as through:
        settings = {"HYPURA": "stream", "HYPURA_STATS": str(stats)}
        with Server(SMOLLM2.path, settings, tmp_path, *ARGUMENTS, "--cache-ram", "32", through=through) as server:
            ask(server, PROMPTS[0])
            first = budget_bytes(stats)
            for prompt in PROMPTS:
                ask(server, prompt)
            assert budget_bytes(stats) > first // 2
            assert "--cache-ram" not in server.log


def test_prompts_without_a_limit_are_told_of_while_there_is_time(tmp_path) -> None:
    with memory_limit(LIMIT_BYTES) as through:
        with Server(SMOLLM2.path, {"HYPURA": "stream"}, tmp_path, *ARGUMENTS, through=through) as server:
            for prompt in PROMPTS:
                ask(server, prompt)
                if "unless --cache-ram MIB says less" in server.log:
                    break
            else:
                raise AssertionError(f"weights gave way to prompts without a word\n{server.log[-3000:]}")
