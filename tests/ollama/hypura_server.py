"""`hypura serve` as its clients see it, and what is left of it on the machine."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import requests

REPOSITORY = Path(__file__).resolve().parents[2]
HYPURA = Path(os.environ.get("HYPURA_TEST_COMMAND", REPOSITORY / "target" / "release" / "hypura"))
MODELS = Path(os.environ.get("HYPURA_TEST_MODELS", REPOSITORY / "build" / "models")).absolute()
SMOLLM2 = MODELS / "smollm2.gguf"
PROJECTOR = MODELS / "projector" / "mmproj-smollm2.gguf"
TEMPLATES = REPOSITORY / "build" / "llama-src" / "models" / "templates"
TIMEOUT_SECONDS = 300

# Less than half of SmolLM2's feed-forward weights: they are read again and again.
STREAMED = ["--stream", "--ram", "20M"]

# Repacked weights are multiplied with AMX, which some virtual machines promise and then fault on.
NO_REPACK = ["--no-repack"]

# What makes an answer the same each time, and short.
GREEDY = {"temperature": 0, "seed": 1, "num_predict": 8}


def environment() -> dict[str, str]:
    """This process's environment without settings of libhypura and llama.cpp."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HYPURA", "LLAMA_", "GGML_"))}
    return kept | {"OMP_WAIT_POLICY": "passive"}


def children_of(parent: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                state, parent_id = (directory / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(parent_id) == parent and state != "Z":
                found.append(int(directory.name))
    return found


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def memory_bytes(process_id: int) -> int:
    """What a process holds that is not mapped from files."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE).group(1)) << 10


def wait_until(condition, what: str, seconds: float = TIMEOUT_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


def with_more(arguments: tuple[str | Path, ...], *more: str) -> list[str | Path]:
    """The arguments, with more of those that come after `--`."""
    return [*arguments, *([] if "--" in arguments else ["--"]), *more]


class HypuraServer:
    """A running `hypura serve` on a free port; use it in a `with` statement."""

    def __init__(self, model: Path, scratch: Path, *arguments: str | Path, through: tuple[str, ...] = ()) -> None:
        """`through` are words to put before the command, such as a shell that enters a cgroup first."""
        scratch.mkdir(parents=True, exist_ok=True)
        self.log_path = scratch / "hypura.log"
        llama = REPOSITORY / "build" / "llama" / "bin"
        # Prompts of an earlier test would be found.
        keep = [] if "--keep-prompts" in arguments else ["--keep-prompts", "0"]
        self.command = [*through, HYPURA, "serve", model, "--port", "0", "--llama", llama, *keep, *with_more(arguments, *NO_REPACK)]

    def __enter__(self) -> "HypuraServer":
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                list(map(str, self.command)), env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(lambda: self._find_url() or self.process.poll() is not None, "listening")
        assert self.process.poll() is None, f"hypura serve ended\n{self.log}"
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise

    def _find_url(self) -> bool:
        found = re.search(r"at (http://\S+) \(", self.log)
        self.url = found and found.group(1)
        return found is not None

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path: str, **more) -> requests.Response:
        return requests.get(self.url + path, timeout=TIMEOUT_SECONDS, **more)

    def post(self, path: str, body: dict | None = None, **more) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=TIMEOUT_SECONDS, **more)

    def ask(self, path: str, body: dict) -> dict:
        """The answer to a request that must succeed."""
        response = self.post(path, body)
        assert response.status_code == 200, f"{path}: {response.text}\n{self.log[-4000:]}"
        return response.json()

    def llama_servers(self) -> list[int]:
        return children_of(self.process.pid)

    def metrics(self) -> dict[str, str]:
        return dict(line.rsplit(" ", 1) for line in self.get("/metrics").text.splitlines() if not line.startswith("#"))

    def busy_slots(self) -> int | None:
        """Requests that llama-server is computing or has waiting; None while it is too busy to tell."""
        metrics = self.metrics()
        if "llamacpp:requests_processing" not in metrics:
            return None
        return int(float(metrics["llamacpp:requests_processing"])) + int(float(metrics["llamacpp:requests_deferred"]))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
