"""Memory that others want: no setting, a cgroup of half of the model, and the kernel never has to kill."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from logits import build_host
from memory_cgroup import memory_limit
from models import Model
from programs import BIN, TIMEOUT_SECONDS, environment

# Takes so many bytes more for each line of its stdin, says so, and gives them back when that ends.
NEIGHBOUR = """
import sys
taken = []
for line in sys.stdin:
    taken.append(b"x" * int(line))
    print("taken", flush=True)
"""

# The governor looks ten times a second; who takes more at once than is free is nobody's neighbour.
NEIGHBOUR_STEP_BYTES = 8 << 20

# As long as weights get no more memory, they have what they will get; the governor looks ten times a second, and gives back in steps.
STEADY_SECONDS = 5

# A page that has to be read from the drive to go on. Programs and libraries take some thousands to start; a storm takes that many a second.
MAJOR_FAULTS_MAX = 20_000


class Host:
    """tests/e2e/two_contexts.cpp, running in a cgroup, as its output and statistics show it."""

    def __init__(self, program: Path, model: Model, through: tuple[str, ...], stats: Path, log: Path) -> None:
        self.stats, self.log, self.pairs = stats, log, 0
        command = [*through, program, model.path, 4096, 4096]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment({"HYPURA_STATS": str(stats)}),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )
        self.reader = threading.Thread(target=self._count_pairs)
        self.reader.start()

    def _count_pairs(self) -> None:
        for _ in self.process.stdout:
            self.pairs += 1

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert self.process.poll() is None, f"it ended ({self.process.returncode}) before {what}\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"it never came to {what}; last: {self.stats.read_text()}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def goes_on(self) -> None:
        before = self.pairs
        self.wait_until(lambda: self.pairs >= before + 4, "computing more tokens")

    def settles(self) -> int:
        """The budget once it has stayed the same; memory that was given up comes back as fast as tokens are computed."""
        last, since = self.budget_bytes(), time.monotonic()

        def steady() -> bool:
            nonlocal last, since
            if (now := self.budget_bytes()) != last:
                last, since = now, time.monotonic()
            return time.monotonic() >= since + STEADY_SECONDS

        self.wait_until(steady, "a budget that stays")
        return last

    def budget_bytes(self) -> int:
        return json.loads(self.stats.read_text())["budget_bytes"]

    def major_faults(self) -> int:
        # The name of the program, in parentheses, may hold spaces; the twelfth field is the ninth after it.
        return int(Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[9])

    def end(self) -> int:
        self.process.stdin.close()
        try:
            return self.process.wait(TIMEOUT_SECONDS)
        finally:
            self.process.kill()
            self.reader.join()


class Neighbour:
    """Another program in the same cgroup, which takes more and more memory."""

    def __init__(self, through: tuple[str, ...]) -> None:
        command = [*through, sys.executable, "-c", NEIGHBOUR]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def takes_more(self) -> None:
        print(NEIGHBOUR_STEP_BYTES, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "taken\n", f"the neighbour ended ({self.process.poll()})"

    def leaves(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(30) == 0, "the neighbour was killed"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return build_host("two_contexts", BIN, tmp_path_factory.mktemp("two_contexts"))


def test_memory_is_given_up_when_others_want_it_and_taken_back_when_they_do_not(wide_moe: Model, program: Path, tmp_path) -> None:
    """Load, a prompt of 4096 tokens, decode, a second context with more cache than is free, and a neighbour that comes and goes."""
    limit_bytes = wide_moe.path.stat().st_size // 2
    with memory_limit(limit_bytes) as through:
        host = Host(program, wide_moe, through, tmp_path / "stats.json", tmp_path / "log")
        neighbour = None
        try:
            host.wait_until(lambda: host.pairs >= 4, "decoding with two contexts")
            # What was given up for the second context and turned out to be free comes back.
            alone = host.settles()

            neighbour = Neighbour(through)

            def gives_up_memory() -> bool:
                neighbour.takes_more()
                return host.budget_bytes() < alone * 3 // 4

            host.wait_until(gives_up_memory, "giving up memory")
            host.goes_on()
            shrunk = host.budget_bytes()

            neighbour.leaves()
            host.wait_until(lambda: host.budget_bytes() > shrunk + (alone - shrunk) // 2, "taking memory back")
            host.goes_on()
            assert host.major_faults() < MAJOR_FAULTS_MAX
        finally:
            if neighbour:
                neighbour.process.kill()
            status = host.end()
    assert status == 0, host.log.read_text()[-3000:]
    figures = json.loads(host.stats.read_text())
    assert figures["errors"] == 0 and figures["read_bytes"] > wide_moe.path.stat().st_size
