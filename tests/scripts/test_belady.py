"""Belady's hit rate against a search through all that a cache could do."""

import random
from functools import cache
from pathlib import Path

from belady import Demand, hit_rate, read_trace


def best_by_search(accesses: list[int], capacity: int) -> float:
    @cache
    def hits(position: int, cached: frozenset[int]) -> int:
        if position == len(accesses):
            return 0
        needed = accesses[position]
        if needed in cached:
            return 1 + hits(position + 1, cached)
        if len(cached) < capacity:
            return hits(position + 1, cached | {needed})
        return max(hits(position + 1, cached - {victim} | {needed}) for victim in cached)

    return hits(0, frozenset()) / len(accesses)


def test_no_policy_is_better() -> None:
    rng = random.Random(1)
    for _ in range(200):
        accesses = [rng.randrange(6) for _ in range(14)]
        capacity = rng.randrange(1, 5)
        demands = [Demand(True, ((0, expert),)) for expert in accesses]
        assert hit_rate(demands, capacity) == best_by_search(accesses, capacity), (accesses, capacity)


def test_prompts_warm_the_cache_and_are_not_counted() -> None:
    demands = [Demand(False, ((0, 1), (0, 2))), Demand(True, ((0, 1),)), Demand(True, ((0, 3),))]
    assert hit_rate(demands, 2) == 0.5


def test_a_recorded_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "# model: m\nturn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n"
        "0,0,1,0,0,5,0,0,100\n0,0,1,0,1,6,0,0,100\n0,0,1,0,0,5,0,0,100\n0,0,1,1,0,2,0,0,300\n0,1,2,0,0,7,0,1,100\n"
    )
    demands, expert_bytes = read_trace(path)
    assert demands == [Demand(False, ((0, 5), (0, 6))), Demand(False, ((1, 2),)), Demand(True, ((0, 7),))]
    assert expert_bytes == 200
