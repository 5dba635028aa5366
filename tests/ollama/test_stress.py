"""Many clients that hang up at random. A minute of it: make stress-ollama."""

import json
import os
import random
import re
import threading
import time

import requests

from hypura_server import GREEDY, SMOLLM2, STREAMED, TIMEOUT_SECONDS, HypuraServer, memory_bytes, wait_until

SECONDS = float(os.environ.get("HYPURA_TEST_STRESS_SECONDS", "15"))
CLIENTS = 32


class Client(threading.Thread):
    """Asks until the end, and leaves about half of its answers unread."""

    def __init__(self, url: str, seed: int, ended: threading.Event, contexts: bool = False) -> None:
        super().__init__()
        self.url, self.ended, self.random, self.contexts = url, ended, random.Random(seed), contexts
        self.finished = self.abandoned = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                self.ask()
            except (requests.RequestException, AssertionError, ValueError) as error:
                self.failures.append(repr(error))

    def ask(self) -> None:
        path = self.random.choice(["/api/generate", "/api/chat", "/api/embed"])
        options = {"num_predict": self.random.randint(1, 12), "temperature": 0.8}
        if self.contexts:
            options["num_ctx"] = self.random.randint(1, 20_000)
        text = f"Count from {self.random.randint(0, 99)}."
        body = {"model": "smollm2", "options": options, "prompt": text, "input": text, "messages": [{"role": "user", "content": text}]}
        body["stream"] = self.random.random() < 0.7
        leaves = self.random.random() < 0.5
        try:
            with requests.post(self.url + path, json=body, stream=True, timeout=self.random.uniform(0.05, 2) if leaves else TIMEOUT_SECONDS) as response:
                assert response.status_code == 200, response.text
                last = None
                for line in response.iter_lines():
                    last = json.loads(line)
                    if leaves and self.random.random() < 0.3:
                        self.abandoned += 1
                        return
                assert "error" not in last and (path == "/api/embed" or last["done"]), last
                self.finished += 1
        except (requests.Timeout, requests.ConnectionError):
            if not leaves:
                raise
            self.abandoned += 1


def run_clients(server: HypuraServer, seconds: float, contexts: bool = False) -> list[Client]:
    """Has them ask for a while, and until some have had answers and some have left; then waits until nothing is under way."""
    ended = threading.Event()
    clients = [Client(server.url, seed, ended, contexts) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        time.sleep(seconds)
        wait_until(lambda: min(total(clients, "finished"), total(clients, "abandoned")) > CLIENTS / 2, "enough answers")
    finally:
        ended.set()
    for client in clients:
        client.join()
    wait_until(lambda: server.busy_slots() == 0, "an idle llama-server")
    wait_until(lambda: server.get("/hypura/figures").json()["model"]["in_flight"] == 0, "the end of all requests")
    return clients


def total(clients: list[Client], what: str) -> int:
    return sum(getattr(client, what) for client in clients)


def test_many_clients_with_changing_contexts_cause_few_loads(tmp_path):
    """Contexts of 1 to 20,000 tokens for a model of 8192: from a default of 2048 no more than two steps up."""
    with HypuraServer(SMOLLM2, tmp_path, "--parallel", "4", "--ctx", "2048") as server:
        clients = run_clients(server, SECONDS if SECONDS >= 60 else SECONDS / 3, contexts=True)
        assert [client.failures for client in clients if client.failures] == []
        starts = int(re.search(r"^hypura_llama_server_starts_total (\d+)$", server.get("/metrics").text, re.MULTILINE)[1])
        print(f"{total(clients, 'finished')} answers read, {starts} loads")
        assert 2 <= starts <= 3, server.log
        (running,) = server.get("/api/ps").json()["models"]
        assert running["context_length"] == 8192


def test_many_clients_lose_nothing(tmp_path):
    with HypuraServer(SMOLLM2, tmp_path, *STREAMED, "--parallel", "4", "--ctx", "512") as server:
        server.ask("/api/generate", {"model": "smollm2"})
        (llama_server,) = server.llama_servers()

        # The first round fills buffers and threads that stay; what the second adds is lost.
        rounds = [run_clients(server, SECONDS / 3)]
        before = [memory_bytes(server.process.pid), memory_bytes(llama_server)]
        descriptors = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        rounds.append(run_clients(server, SECONDS * 2 / 3))
        after = [memory_bytes(server.process.pid), memory_bytes(llama_server)]

        clients = [client for round_ in rounds for client in round_]
        assert [client.failures for client in clients if client.failures] == []
        print(f"{total(clients, 'finished')} answers read, {total(clients, 'abandoned')} abandoned; memory {before} -> {after}")
        assert server.llama_servers() == [llama_server]
        assert len(os.listdir(f"/proc/{server.process.pid}/fd")) <= descriptors + 2
        assert after[0] < before[0] + (16 << 20) and after[1] < before[1] + (64 << 20)
        # All slots still answer.
        for _ in range(4):
            assert server.ask("/api/generate", {"model": "smollm2", "prompt": "Hi", "stream": False, "options": GREEDY})["response"]
