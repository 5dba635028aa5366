"""A llama-server for one run: requests that end in time, tokens with the moment of their arrival, statistics between requests.

The server rather than llama-completion, because it answers with tokens as they come and never loses the end of a log at exit.
"""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import requests

from workplace import SERVER, cache_folder

LOAD_SECONDS = 900
EXIT_SECONDS = 30
# Longer than libhypura's interval between two snapshots.
STATS_SECONDS = 20
# Look-ahead reads that a request leaves behind end sooner than this.
REST_SECONDS = 0.5


class ServerDied(Exception):
    """The server ended or never served; the message says how."""


@dataclass
class Answer:
    """Tokens and when they came, in seconds from the request. Cut short when the time was up."""

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    first_seconds: float | None = None
    last_seconds: float | None = None
    drafted: int = 0
    accepted: int = 0


class Serving:
    """A running llama-server with one slot; use it in a `with` statement."""

    def __init__(self, model: Path, settings: dict[str, str], through: tuple[str, ...] = (), flags: tuple[str, ...] = ()) -> None:
        """`settings` are HYPURA variables, `through` is put before the command (a cgroup), `flags` are added to it."""
        self.scratch = tempfile.TemporaryDirectory(prefix="hypura-bench-")
        self.stats_path = Path(self.scratch.name, "stats.json")
        self.log_path = Path(self.scratch.name, "log")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [*through, SERVER, "-m", model, "-np", "1", "-c", "2048", "--no-repack", "--cache-ram", "0", "--port", port, *flags]
        self.command = list(map(str, command))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HYPURA", "LLAMA_"))}
        # Facts about the machine are kept from run to run, but each run is to start without habits of the model.
        cache = cache_folder() / "facts"
        for habits in cache.glob("hypura/habits-*.bin"):
            habits.unlink(missing_ok=True)
        self.environment = inherited | {"HYPURA_STATS": str(self.stats_path), "XDG_CACHE_HOME": str(cache)} | settings

    def __enter__(self) -> "Serving":
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        started = time.monotonic()
        end = started + LOAD_SECONDS
        while not self._is_healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                message = self._how_it_ended("did not load the model")
                self.__exit__()
                raise ServerDied(message)
            time.sleep(0.05)
        self.load_seconds = time.monotonic() - started
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.scratch.cleanup()

    def complete(self, prompt: str, tokens: int, seconds: float | None = None) -> Answer:
        """The greedy continuation. What the slot still knows of the prompt is not computed again. Ends about when `seconds` are over."""
        answer = Answer(0)
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "seed": 1, "ignore_eos": True}
        body |= {"cache_prompt": True, "stream": True, "return_tokens": True}
        start = time.monotonic()
        try:
            tokenized = requests.post(f"{self.url}/tokenize", json={"content": prompt, "add_special": True}, timeout=LOAD_SECONDS)
            answer.prompt_tokens = len(tokenized.json()["tokens"])
            with requests.post(f"{self.url}/completion", json=body, stream=True, timeout=seconds or LOAD_SECONDS) as response:
                if response.status_code != 200:
                    raise ServerDied(f"the server answered {response.status_code}: {response.text}\n{self.log_tail()}")
                for line in response.iter_lines():
                    now = time.monotonic() - start
                    self._take(answer, line, now)
                    if seconds and now > seconds:
                        break
        except requests.RequestException as error:
            if not self._is_alive():
                raise ServerDied(self._how_it_ended("ended during a request")) from None
            # A stream that is silent for too long is reported as either of these.
            timed_out = isinstance(error, (requests.ReadTimeout, requests.ConnectionError)) and "timed out" in str(error)
            if not (timed_out and seconds):
                raise ServerDied(f"{error}\n{self.log_tail()}") from None
        return answer

    def stats(self) -> dict:
        """A snapshot that libhypura took after the last request and its reads had ended; empty when it streams nothing."""
        if not self.stats_path.exists():
            return {}
        asked = time.time() + REST_SECONDS
        end = asked + STATS_SECONDS
        while self.stats_path.stat().st_mtime < asked:
            if time.time() > end:
                raise ServerDied(f"no statistics were written for {STATS_SECONDS} s\n{self.log_tail()}")
            time.sleep(0.1)
        return json.loads(self.stats_path.read_text())

    def log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-3000:]

    def _take(self, answer: Answer, line: bytes, now: float) -> None:
        if line.startswith(b"error:"):
            raise ServerDied(f"the server answered {line.decode(errors='replace')}\n{self.log_tail()}")
        if not line.startswith(b"data: {"):
            return
        event = json.loads(line[len(b"data: ") :])
        if "error" in event:
            raise ServerDied(f"the server answered {event['error']}\n{self.log_tail()}")
        if event.get("tokens") and not event.get("stop"):
            answer.tokens += event["tokens"]
            answer.text += event["content"]
            answer.first_seconds = now if answer.first_seconds is None else answer.first_seconds
            answer.last_seconds = now
        timings = event.get("timings", {})
        answer.drafted = timings.get("draft_n", answer.drafted)
        answer.accepted = timings.get("draft_n_accepted", answer.accepted)

    def _is_healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def _is_alive(self) -> bool:
        """Its last connection may break a moment before the process is gone."""
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            return True
        return False

    def _how_it_ended(self, what: str) -> str:
        status = self.process.poll()
        if status is not None and status < 0:
            return f"{what}: killed by {signal.Signals(-status).name}"
        return f"{what} (exit status {status})\n{self.log_tail()}"
