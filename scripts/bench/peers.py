"""libhypura beside other programs: one mixture of experts, one memory cgroup, one go, under 25%, 40% and 60% of the file.

The other programs are named in a file (peers.toml tells how). In every round each of them and each kind of ours runs once, the page cache
dropped before. Their speed is what they print, ours is what a client of llama-server sees. The drive is measured before and after ours.

Columns: generated tokens per second, and how many times stock's that is; the share of the roofline, as in bench-moe; hits of our cache; how far a
program's text agrees with that of llama.cpp: other kernels round otherwise, so that a text may part from ours and be right.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from made_models import wide_moe
from memory import limited
from moe import MMAP, NO_PREFETCH, OURS, RESIDENT, Subject, kinds_under, roofline, run_hits
from runs import Run, drop_caches, in_rounds, median, per_token, require_equal_texts, speed
from table import number, percent, print_table, write_json
from workplace import options, prompts

EXAMPLE = Path(__file__).with_name("peers.toml")
# What a program needs beside its cache of experts.
REST_MIB = 400
# So many characters of the continuation are looked for in what a program prints.
RECOGNIZED = 16


@dataclass(frozen=True)
class Peer:
    """A program, and how to read its speed."""

    name: str
    command: list[str]
    speed: str
    tokens: int | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class PeerRun:
    """Tokens per second, and all that was printed; or what went wrong."""

    speed: float | None = None
    output: str = ""
    failure: str | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peers", type=Path, nargs="?", default=EXAMPLE, metavar="FILE", help="the programs (default scripts/bench/peers.toml)")
    parser.add_argument("--limits", type=int, nargs="+", default=[25, 40, 60], metavar="PERCENT", help="memory limits (default 25 40 60)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate (default 64)")
    parser.add_argument("--seconds", type=float, default=600, help="time that a run of a slow program may take (default 600)")


def read_peers(path: Path) -> list[Peer]:
    try:
        return [Peer(**entry) for entry in tomllib.loads(path.read_text())["peer"]]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        sys.exit(f"{path}: {error}; {EXAMPLE} shows what belongs there")


def run_peer(peer: Peer, subject: Subject, through: tuple[str, ...], limit_bytes: int, seconds: float) -> PeerRun:
    """One run, from cold."""
    values = {"model": subject.model, "prompt": subject.texts[0], "tokens": peer.tokens or subject.tokens}
    values["cache_mib"] = max((limit_bytes >> 20) - REST_MIB, 0)
    command = [*through, *(part.format_map(values) for part in peer.command)]
    drop_caches()
    try:
        finished = subprocess.run(command, env=os.environ | peer.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return PeerRun(failure=f"took more than {seconds:.0f} s")
    except OSError as error:
        return PeerRun(failure=str(error))
    output = (finished.stdout + finished.stderr).decode(errors="replace")
    speeds = re.findall(peer.speed, output)
    if finished.returncode != 0 or not speeds:
        return PeerRun(output=output, failure=f"exit status {finished.returncode}, {len(speeds)} speeds in: {output[-300:]}")
    return PeerRun(float(speeds[-1]), output)


def agreement(output: str, continuation: str) -> str:
    """How far a text is continued in what a program prints, whatever the white space."""
    printed, wanted = " ".join(output.split()), " ".join(continuation.split())
    lengths = [len(os.path.commonprefix([printed[found.start() :], wanted])) for found in re.finditer(re.escape(wanted[:RECOGNIZED]), printed)]
    if not lengths:
        return "another"
    return "equal" if max(lengths) == len(wanted) else f"{max(lengths)} characters"


def bench_limit(peers: list[Peer], subject: Subject, percent_of_file: int, arguments: argparse.Namespace) -> dict:
    limit_bytes = subject.model.stat().st_size * percent_of_file // 100
    ours: dict[str, list[Run]] = {}
    others: dict[str, list[PeerRun]] = {peer.name: [] for peer in peers}
    with limited(limit_bytes) as through:
        for _ in range(arguments.rounds):
            for name, runs in in_rounds(kinds_under(through, subject, arguments.seconds), 1).items():
                ours.setdefault(name, []).extend(runs)
            for peer in peers:
                run = run_peer(peer, subject, through, limit_bytes, arguments.seconds)
                print(f"{peer.name}: {run.failure or run.speed}", file=sys.stderr, flush=True)
                others[peer.name].append(run)
    require_equal_texts(ours)
    print(f"\n{subject.model.name}, memory limit {percent_of_file}% ({limit_bytes / 1e9:.1f} GB), medians of {arguments.rounds}\n")
    print_rows(ours, others)
    return {"ours": ours, "others": others}


def print_rows(ours: dict[str, list[Run]], others: dict[str, list[PeerRun]]) -> None:
    stock = speed(ours[MMAP])
    resident = speed(ours.get(RESIDENT, []))
    missed_bytes = per_token(ours[NO_PREFETCH], "read_bytes")
    limits = [roof for run in ours[OURS] if (roof := roofline(run, resident and 1 / resident, missed_bytes))]
    limit_seconds = median(roof.seconds for roof in limits)

    def row(name: str, found: float | None, why: str | None, hits: float | None, text: str) -> list[str]:
        times = found / stock if found and stock else None
        share = found * limit_seconds if found and limit_seconds and name != RESIDENT else None
        return [name, number(found) or (why or "").splitlines()[0], number(times, 1), percent(share), percent(hits), text]

    rows = [row(name, speed(runs), runs[0].failure, median(map(run_hits, runs)), "equal") for name, runs in ours.items()]
    longest = max((run.written[0] for runs in ours.values() for run in runs if run.written), key=len)
    for name, runs in others.items():
        text = "" if runs[0].failure else agreement(runs[0].output, longest)
        rows.append(row(name, median(run.speed for run in runs), runs[0].failure, None, text))
    print_table(["", "tokens per second", "times mmap", "of the roofline", "hits", "text"], rows)


def main() -> None:
    arguments = options(__doc__, add_options)
    peers = read_peers(arguments.peers)
    subject = Subject(wide_moe(), prompts(1), arguments.tokens, [], 0)
    results = {f"{share}%": bench_limit(peers, subject, share, arguments) for share in arguments.limits}
    write_json(arguments.output, "peers", {"model": subject.model.name, "limits": results})


if __name__ == "__main__":
    main()
