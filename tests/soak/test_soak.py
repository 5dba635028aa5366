"""Mixed load on two streaming models at once, every byte verified: the same texts throughout, and nothing grows: make soak."""

import os
import random
import re
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import requests

sys.path.append(str(Path(__file__).resolve().parents[1] / "e2e"))

from logits import build_host  # noqa: E402, the tests of whole programs have it
from models import SMOLLM2, SMOLLM2_MOE, Model  # noqa: E402
from programs import BIN, environment  # noqa: E402
from server import Server  # noqa: E402

SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))

# One slot, so that what is computed together, and with it the last bits, is the same every time; and no prompts are kept.
ARGUMENTS = ["-np", "1", "-c", "1024", "-t", "1", "--cache-ram", "0"]

REQUESTS = [
    ("/completion", {"prompt": "The capital of Norway is", "n_predict": 12}),
    ("/completion", {"prompt": "In the middle of December the harbour freezes. " * 12, "n_predict": 4}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 10}),
]

# What allocators keep from one request to the next differs by so much.
GROWTH_BYTES = 24 << 20


class Client(threading.Thread):
    """Asks one server until the end, and hangs up on a third of its answers."""

    def __init__(self, server: Server, seed: int, end: float) -> None:
        super().__init__()
        self.server, self.end, self.random = server, end, random.Random(seed)
        self.asked = self.abandoned = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            right = [self.server.text(*request) for request in REQUESTS]
            before = self.held()
            while time.monotonic() < self.end or self.asked < 2 * len(REQUESTS):
                number = self.asked % len(REQUESTS)
                if self.random.random() < 0.3:
                    self.hang_up(*REQUESTS[number])
                assert self.server.text(*REQUESTS[number]) == right[number], f"request {self.asked} has another text"
                self.asked += 1
            descriptors, memory = self.held()
            assert descriptors <= before[0] + 2, f"{before[0]} descriptors at first, {descriptors} at last"
            assert memory <= before[1] + GROWTH_BYTES, f"{before[1]} bytes at first, {memory} at last"
        except Exception as error:  # noqa: BLE001, to be raised where the test sees it
            self.failure = error

    def hang_up(self, path: str, body: dict) -> None:
        with self.server.post(path, body | {"stream": True, "n_predict": 200, "max_tokens": 200}, stream=True) as response:
            next(response.iter_lines(), None)
        self.abandoned += 1

    def held(self) -> tuple[int, int]:
        """Descriptors and bytes of memory of the server, once it is idle again."""
        while any(slot["is_processing"] for slot in requests.get(f"{self.server.url}/slots", timeout=60).json()):
            time.sleep(0.05)
        process = Path(f"/proc/{self.server.process.pid}")
        memory = re.search(r"^VmRSS:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE)
        return len(list((process / "fd").iterdir())), int(memory.group(1)) << 10


def test_texts_stay_the_same_and_nothing_grows(tmp_path) -> None:
    """Beside the servers, a host makes and frees contexts, cancels prompts and forks, over and over."""
    def settings(model: Model, share: float) -> dict[str, str]:
        return {"HYPURA": "stream", "HYPURA_VERIFY": "1", "HYPURA_RAM": str(int(share * model.streamable_bytes))}

    end = time.monotonic() + SECONDS
    host = build_host("comings", BIN, tmp_path)
    with ExitStack() as stack:
        shares = [(SMOLLM2_MOE, 0.2), (SMOLLM2, 0.3)]
        servers = [stack.enter_context(Server(model.path, settings(model, share), tmp_path, *ARGUMENTS)) for model, share in shares]
        clients = [Client(server, seed, end) for seed, server in enumerate(servers)]
        for client in clients:
            client.start()
        visits = 0
        while visits == 0 or time.monotonic() < end:
            command = [str(host), str(SMOLLM2_MOE.path)]
            visit = subprocess.run(command, env=environment(settings(SMOLLM2_MOE, 0.15)), capture_output=True, text=True)
            assert visit.returncode == 0 and ": no" not in visit.stdout and visit.stdout.count(": yes") == 5, visit.stdout + visit.stderr[-3000:]
            visits += 1
        for client, server in zip(clients, servers):
            client.join()
            assert client.failure is None, f"{client.failure}\n{server.log[-3000:]}"
            assert server.process.poll() is None
        print(f"{[client.asked for client in clients]} requests, {[client.abandoned for client in clients]} hung up on, {visits} hosts")
