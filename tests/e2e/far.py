"""Another machine: llama.cpp's RPC server in a network of its own, with a cable to the network of the programs that use it."""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from models import SMOLLM2_MOE
from programs import BIN, COMPARABLE, GREEDY, OFF, TIMEOUT_SECONDS, environment

HERE, THERE = "10.93.7.1", "10.93.7.2"
PORT = 50052


class Networks:
    """Two network namespaces and the cable between them. They are gone when the processes that hold them are."""

    def __init__(self) -> None:
        self.holders: list[subprocess.Popen] = []
        for _ in range(2):
            holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.holders.append(holder)
            holder.stdin.write(b"ready\n")
            holder.stdin.flush()
            if holder.stdout.readline() != b"ready\n":
                raise OSError("no network namespace can be made")
        near, far = self.enter(0), self.enter(1)
        for words in (
            [*near, "ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(self.holders[1].pid)],
            [*near, "ip", "addr", "add", f"{HERE}/24", "dev", "here"],
            [*far, "ip", "addr", "add", f"{THERE}/24", "dev", "there"],
            [*near, "ip", "link", "set", "here", "up"],
            [*far, "ip", "link", "set", "there", "up"],
        ):
            subprocess.run(words, check=True, capture_output=True)

    def enter(self, which: int) -> list[str]:
        """Words before a command that run it in the near (0) or the far (1) network."""
        return ["nsenter", f"--net=/proc/{self.holders[which].pid}/ns/net"]

    def unplug(self) -> None:
        subprocess.run([*self.enter(1), "ip", "link", "set", "there", "down"], check=True)

    def plug_in(self) -> None:
        subprocess.run([*self.enter(1), "ip", "link", "set", "there", "up"], check=True)

    def close(self) -> None:
        for holder in self.holders:
            holder.stdin.close()
            holder.wait()


def make_networks() -> Networks | None:
    """None on a system that does not let this user make any, or has not the tools."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return None
    try:
        return Networks()
    except (OSError, subprocess.CalledProcessError):
        return None


class Far:
    """A machine that computes; use it in a `with` statement. Without networks of its own it is this machine's loopback."""

    def __init__(self, networks: Networks | None, scratch: Path) -> None:
        self.networks = networks
        self.through = tuple(networks.enter(0)) if networks else ()
        self.log = scratch / "far.log"
        if networks:
            self.host, self.port = THERE, PORT
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.host, self.port = free.getsockname()
        self.address = f"{self.host}:{self.port}"

    def __enter__(self) -> "Far":
        enter = self.networks.enter(1) if self.networks else []
        command = [*enter, BIN / "ggml-rpc-server", "-H", self.host, "-p", str(self.port), "-t", "1"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment(OFF), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + TIMEOUT_SECONDS
        while not self.is_listening():
            assert self.process.poll() is None and time.monotonic() < end, f"the server does not serve\n{self.log.read_text()}"
            time.sleep(0.02)
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()

    def is_listening(self) -> bool:
        """By the table of the server's own network: a connection would count as a client."""
        try:
            table = Path(f"/proc/{self.process.pid}/net/tcp").read_text()
        except OSError:
            return False
        return re.search(rf":{self.port:04X} 00000000:0000 0A ", table) is not None

    def received_bytes(self) -> int:
        """What has been sent to the machine so far; on loopback, in either direction."""
        device = "there" if self.networks else "lo"
        lines = Path(f"/proc/{self.process.pid}/net/dev").read_text()
        return int(re.search(rf"^\s*{device}:\s*(\d+)", lines, re.MULTILINE).group(1))

    def probes_its_peer(self, process: subprocess.Popen) -> bool:
        """Whether a connection of this process to or from the machine asks from time to time if the other end is there.

        The system shows that only while nothing is on its way, so it is looked at several times.
        """
        established_and_probing = rf":{self.port:04X} [^\n]* 01 \w+:\w+ 02:" if process is self.process else rf":{self.port:04X} 01 \w+:\w+ 02:"
        for _ in range(500):
            if re.search(established_and_probing, Path(f"/proc/{process.pid}/net/tcp").read_text()):
                return True
            time.sleep(0.01)
        return False


class Endless:
    """A completion that goes on until it is stopped, in part there; use it in a `with` statement."""

    def __init__(self, far: Far, scratch: Path, *more: str) -> None:
        model = SMOLLM2_MOE
        words = ["-m", model.path, *COMPARABLE, *GREEDY, "-no-cnv", "--ignore-eos", "-n", "100000", "-c", "512", "--context-shift", "-p", "The"]
        words += ["--rpc", far.address, *more]
        self.command = [*far.through, BIN / "llama-completion", *map(str, words)]
        self.settings = {"HYPURA": "stream", "HYPURA_RAM": str(model.streamable_bytes // 3)}
        self.output, self.errors = scratch / "output", scratch / "errors"

    def __enter__(self) -> "Endless":
        with self.output.open("wb") as stdout, self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(self.command, env=environment(self.settings), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        end = time.monotonic() + TIMEOUT_SECONDS
        while self.output.stat().st_size < 40:
            assert self.process.poll() is None and time.monotonic() < end, self.errors.read_text()
            time.sleep(0.02)
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
