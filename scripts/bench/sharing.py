"""How soon processes that share a memory limit have their fair parts: a newcomer beside one that has all, and several that start together.

A table: seconds from the newcomer's first request to the first moment at which every part is within 10% of the fair one, and how far the
parts are from it ten seconds after that request. Parts are read from the records that the processes keep for each other.
"""

import json
import os
import statistics
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import workplace

from memory_cgroup import memory_limit  # noqa: E402, the tests'
from models import SMOLLM2_MOE  # noqa: E402
from server import Server  # noqa: E402

BODY = {"prompt": "The capital of Norway is", "n_predict": 16}
ARGUMENTS = ["-np", "1", "-c", "512", "-b", "64", "-ub", "64", "-t", "1"]
EACH_BYTES = 220 << 20
WATCHED_SECONDS = 10
FAIR = 0.1


def parts(servers: list[Server]) -> list[int]:
    """Bytes for weights of each process, as they tell each other."""
    directory = Path(f"/run/user/{os.getuid()}")
    place = directory / "hypura" if directory.is_dir() else Path(f"/dev/shm/hypura-{os.getuid()}")
    records = [path.read_text().split() for server in servers for path in place.glob(f"memory-{server.process.pid}-*")]
    return [int(record[5]) for record in records if len(record) == 8]


def distance(bytes_: list[int]) -> float:
    fair = sum(bytes_) / len(bytes_)
    return max(abs(part - fair) / fair for part in bytes_)


def watch(servers: list[Server], began: float) -> dict[str, float | None]:
    """When the parts of these processes became fair, and how fair they are at the end."""
    fair_after, latest = None, 1.0
    while time.monotonic() - began < WATCHED_SECONDS:
        now = parts(servers)
        if len(now) == len(servers):
            latest = distance(now)
            if latest <= FAIR and fair_after is None:
                fair_after = time.monotonic() - began
        time.sleep(0.02)
    return {"fair_after_seconds": fair_after, "distance_after_ten": latest}


def ask(server: Server, until: float) -> None:
    while time.monotonic() < until:
        server.text("/completion", BODY)


def run(count: int, together: bool, scratch: Path) -> dict[str, float | None]:
    limit_bytes = count * (SMOLLM2_MOE.other_bytes + EACH_BYTES)
    with memory_limit(limit_bytes) as through:
        servers = [Server(SMOLLM2_MOE.path, {"HYPURA": "stream"}, scratch, *ARGUMENTS, through=through) for _ in range(count)]
        for server in servers:
            server.__enter__()
        try:
            if not together:
                servers[0].text("/completion", BODY)
            began = time.monotonic()
            threads = [threading.Thread(target=ask, args=(server, began + WATCHED_SECONDS)) for server in servers]
            for thread in threads:
                thread.start()
            result = watch(servers, began)
            for thread in threads:
                thread.join()
            return result
        finally:
            for server in servers:
                server.__exit__()


def main() -> None:
    arguments = workplace.options(__doc__)
    cases = {"a newcomer": (2, False), "two together": (2, True), "three together": (3, True)}
    results: dict[str, list[dict]] = {name: [] for name in cases}
    with TemporaryDirectory() as scratch:
        for _ in range(arguments.rounds):
            for name, (count, together) in cases.items():
                results[name].append(run(count, together, Path(scratch)))
    print("| | fair after (s), each run | distance from the fair part after ten seconds |\n|---|---|---|")
    for name, runs in results.items():
        times = ", ".join("never" if run["fair_after_seconds"] is None else f"{run['fair_after_seconds']:.2f}" for run in runs)
        print(f"| {name} | {times} | {statistics.median(run['distance_after_ten'] for run in runs):.1%} |")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "sharing.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
