"""Starting the built programs: where they are, their environment, and what a finished run leaves behind."""

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Another folder with llama-src and llama/bin in it: tests that take what is there try another version of llama.cpp.
BUILD = Path(os.environ.get("HYPURA_TEST_BUILD") or REPOSITORY / "build")
SOURCE = BUILD / "llama-src"
BIN = BUILD / "llama" / "bin"
OFF_BIN = REPOSITORY / "build" / "llama-off" / "bin"
STOCK_BIN = REPOSITORY / "build" / "llama-stock" / "bin"
BACKEND = REPOSITORY / "build" / "backend" / "libggml-hypura.so"
TIMEOUT_SECONDS = 300

# What libhypura finds out about the machine is kept here from test to test; what it learns about models is not.
CACHE = REPOSITORY / "build" / "e2e-cache"

OFF = {"HYPURA": "off"}

# What makes a run comparable: stock llama.cpp repacks weights it holds in memory, which selects other kernels.
COMPARABLE = ["--no-repack", "-t", "2"]
GREEDY = ["--temp", "0", "--seed", "1"]


def environment(settings: dict[str, str]) -> dict[str, str]:
    """This process's environment with these `HYPURA*` settings and no others, and without llama.cpp's own overrides.

    Models were just written or read, so the page cache has them: unless a setting says otherwise, they are read from the drive all the same.

    No habits of a model are known, so that a test does not depend on those before it.
    """
    for habits in CACHE.glob("hypura/habits-*.bin"):
        habits.unlink(missing_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HYPURA", "LLAMA_", "GGML_"))}
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "XDG_CACHE_HOME": str(CACHE), "HYPURA_DIRECT": "cold"}
    return inherited | fixed | settings


@dataclass
class Finished:
    """A program that ended: its exit status (negative for a signal), what it printed, and the most memory it held."""

    status: int
    output: str
    log: str
    peak_bytes: int

    def succeeded(self) -> "Finished":
        assert self.status == 0, f"exit status {self.status}\n{self.log[-4000:]}"
        return self

    def refused(self, *words: str) -> "Finished":
        """It ended by itself, unsuccessfully, and said why in these words (regular expressions)."""
        assert self.status > 0, f"exit status {self.status}, wanted a clean failure\n{self.log[-4000:]}"
        for word in words:
            assert re.search(word, self.log), f"'{word}' is not in the message:\n{self.log[-4000:]}"
        return self


def peak_bytes(process_id: int) -> int:
    """The most memory that a live process has held so far (VmHWM); 0 when it is gone.

    Not getrusage: its maximum includes what the parent held when it started the child.
    """
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    line = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(line.group(1)) << 10 if line else 0


def run(
    program: Path | str,
    arguments: list[str | Path],
    settings: dict[str, str],
    scratch: Path,
    through: tuple[str, ...] = (),
) -> Finished:
    """Run a program to its end. `through` are words to put before it, such as a shell that enters a cgroup first."""
    path = program if isinstance(program, Path) else BIN / program
    out, err = scratch / "stdout", scratch / "stderr"
    command = [*through, str(path), *map(str, arguments)]
    peak = 0
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment(settings), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        end = time.monotonic() + TIMEOUT_SECONDS
        try:
            while process.poll() is None:
                peak = max(peak, peak_bytes(process.pid))
                if time.monotonic() > end:
                    raise AssertionError(f"{path.name} did not end within {TIMEOUT_SECONDS} s\n{err.read_text(errors='replace')[-4000:]}")
                time.sleep(0.01)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
    return Finished(process.returncode, out.read_text(errors="replace"), err.read_text(errors="replace"), peak)


def run_whole(last_words: str, *arguments) -> Finished:
    """Run a program whose complete output has these last words (a regular expression); again if they are missing.

    llama.cpp's programs print from a thread and leave without waiting for it, so what is printed last may be lost.
    """
    for _ in range(5):
        finished = run(*arguments)
        if finished.status != 0 or re.search(last_words, finished.output):
            return finished
    raise AssertionError(f"the output ends before '{last_words}': {finished.output[-1000:]}\n{finished.log[-4000:]}")


def complete(
    model: Path,
    settings: dict[str, str],
    scratch: Path,
    *more: str,
    prompt: str = "The capital of Norway is",
    tokens: int = 24,
    program: Path | str = "llama-completion",
    flags: list[str] = COMPARABLE,
    through: tuple[str, ...] = (),
) -> Finished:
    """Greedy text after a prompt."""
    arguments = ["-m", model, *flags, *GREEDY, "-no-cnv", "--no-display-prompt", "-n", str(tokens), "-c", "512", "-p", prompt, *more]
    return run_whole(r"\n\n\Z", program, arguments, settings, scratch, through)
