"""The best hit rate that any policy could reach: Belady's, which evicts what is needed last, on the experts that a run really used.

An entry of this cache is one expert of one layer with all its matrices. What is needed must be in the cache, so a miss always evicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

Expert = tuple[int, int]  # layer, number


@dataclass(frozen=True)
class Demand:
    """The distinct experts that one layer needs for one batch. A batch of one token is decoding."""

    is_decode: bool
    experts: tuple[Expert, ...]


def read_trace(path: Path) -> tuple[list[Demand], float]:
    """A file that HYPURA_TRACE recorded, as demands in order; and the mean bytes of an expert."""
    demands: list[Demand] = []
    current: tuple[str, str, str] | None = None
    experts: dict[Expert, None] = {}
    sizes: dict[str, int] = {}
    with path.open() as lines:
        for line in lines:
            if not line[0].isdigit():
                continue
            _, phase, step, layer, _, expert, _, _, expert_bytes = line.rstrip().split(",")
            if (phase, step, layer) != current:
                if current:
                    demands.append(Demand(current[0] == "1", tuple(experts)))
                current, experts = (phase, step, layer), {}
            experts[int(layer), int(expert)] = None
            sizes[layer] = int(expert_bytes)
    if not current:
        raise SystemExit(f"{path}: no routing was recorded")
    demands.append(Demand(current[0] == "1", tuple(experts)))
    return demands, sum(sizes.values()) / len(sizes)


def hit_rate(demands: Sequence[Demand], capacity: int) -> float:
    """The share of the experts of decoding that were in a cache of so many experts, which begins empty."""
    accesses = [(expert, demand.is_decode) for demand in demands for expert in demand.experts]
    never = len(accesses)
    next_use = [never] * len(accesses)
    later: dict[Expert, int] = {}
    for position in range(len(accesses) - 1, -1, -1):
        expert, _ = accesses[position]
        next_use[position] = later.get(expert, never)
        later[expert] = position

    cached: dict[Expert, int] = {}  # when each is needed again
    latest: list[tuple[int, Expert]] = []  # a heap of the same, the last use first; entries that `cached` contradicts are stale
    hits = total = 0
    for position, (expert, is_decode) in enumerate(accesses):
        total += is_decode
        if expert in cached:
            hits += is_decode
        elif len(cached) >= capacity:
            while True:
                use, victim = heappop(latest)
                if cached.get(victim) == -use:
                    del cached[victim]
                    break
        cached[expert] = next_use[position]
        heappush(latest, (-next_use[position], expert))
    return hits / total if total else 0.0
