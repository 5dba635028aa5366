"""llama-server as its clients see it."""

import socket
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import requests

from programs import BIN, COMPARABLE, TIMEOUT_SECONDS, environment

# Repeated, it makes a prompt that takes long enough to read that requests sent meanwhile are all waiting when it is done.
# How long depends on the machine and on what else it does: 60 times still fit a slot's context.
SENTENCE = "The harbour freezes in the middle of December, and from then until spring the island lives on what it has put away. "
REPEATS = (15, 15, 30, 30, 60, 60, 60, 60)


class Server:
    """A running llama-server with four slots; use it in a `with` statement."""

    def __init__(
        self, model: Path, settings: dict[str, str], scratch: Path, *more: str, programs: Path = BIN, through: tuple[str, ...] = ()
    ) -> None:
        """`through` are words to put before the command, such as a shell that enters a cgroup first."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = scratch / f"server-{port}.log"
        self.command = [*through, programs / "llama-server", "-m", model, *COMPARABLE, "-np", "4", "-c", "8192", "--metrics", "--port", port, *more]
        self.settings = settings

    def __enter__(self) -> "Server":
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                list(map(str, self.command)),
                env=environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + TIMEOUT_SECONDS
        while not self.is_healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise AssertionError(f"llama-server does not serve\n{self.log[-4000:]}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def is_healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def post(self, path: str, body: dict, **more) -> requests.Response:
        defaults = {"temperature": 0, "seed": 1, "cache_prompt": False}
        return requests.post(self.url + path, json=defaults | body, timeout=TIMEOUT_SECONDS, **more)

    def text(self, path: str, body: dict) -> str:
        """The text that one request is answered with."""
        response = self.post(path, body)
        assert response.status_code == 200, f"{path}: {response.text}\n{self.log[-4000:]}"
        answer = response.json()
        return answer["content"] if path == "/completion" else answer["choices"][0]["message"]["content"]

    def texts(self, requests_: list[tuple[str, dict]]) -> list[str]:
        """The answers to requests of as many clients, all at once."""
        with ThreadPoolExecutor(len(requests_)) as clients:
            return list(clients.map(lambda request: self.text(*request), requests_))

    def decode_count(self) -> int:
        metrics = requests.get(f"{self.url}/metrics", timeout=TIMEOUT_SECONDS).text
        (line,) = [line for line in metrics.splitlines() if line.startswith("llamacpp:n_decode_total ")]
        return int(float(line.split()[1]))

    def texts_in_lock_step(self, requests_: list[tuple[str, dict]], tokens: int) -> list[str]:
        """The answers, of this many tokens each, to four clients whose tokens are computed in the same batches throughout.

        Which requests share a batch decides the shapes of its matrices, and with them the CPU kernels and the last bits of
        the logits: stock llama-server answers the same request differently from one time to the next. So that texts
        can be compared, all requests must be waiting when a batch begins. They are sent while the server is busy with
        a long prompt; each asks for its own slot, and for the same number of tokens. That it worked is told by
        the number of batches: one for the prompts, then one for each further token. Otherwise it is tried again,
        with a longer prompt.
        """
        for repeats in REPEATS:
            with ThreadPoolExecutor(1) as blocker:
                before = self.decode_count()
                busy = {"prompt": SENTENCE * repeats, "n_predict": 1, "id_slot": 0}
                blocked: Future = blocker.submit(self.text, "/completion", busy)
                time.sleep(0.1)
                fixed = {"n_predict": tokens, "max_tokens": tokens, "ignore_eos": True}
                answers = self.texts([(path, body | fixed | {"id_slot": slot}) for slot, (path, body) in enumerate(requests_)])
                blocked.result()
            if self.decode_count() - before == 1 + tokens:
                return answers
        raise AssertionError("the requests never arrived together; is the machine overloaded?")
