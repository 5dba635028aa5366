"""Processor time that a hypervisor gave to other machines.

What is measured then is their load: on a shared server a run lost a third of its processor time and took three times as long as the next
one, which lost none. So a run that lost much is taken again.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

STOLEN_MAX = 0.05
TRIES = 4

Result = TypeVar("Result")


class ProcessorTime:
    """Since when it was made."""

    def __init__(self) -> None:
        self._start = read_ticks()

    def stolen(self) -> float:
        """The share of all processors' time that processes wanted and did not get; 0 where the kernel does not tell."""
        passed, stolen = (now - before for now, before in zip(read_ticks(), self._start))
        return stolen / passed if passed else 0.0


def read_ticks(stat: Path = Path("/proc/stat")) -> tuple[int, int]:
    """Time of all cores, idle or not, and what of it was stolen, since the machine started."""
    try:
        columns = stat.read_text().splitlines()[0].split()[1:]
    except (OSError, IndexError):
        return 0, 0
    # Beyond the eighth column is what the others count already.
    passed = [int(column) for column in columns[:8]]
    return sum(passed), passed[7]


def undisturbed(measure: Callable[[], tuple[Result, float]]) -> Result:
    """What `measure` returns beside the share that was stolen from it, taken again a few times while that is much; the least disturbed."""
    results = []
    for number in range(1, TRIES + 1):
        results.append(measure())
        stolen = results[-1][1]
        if stolen <= STOLEN_MAX:
            break
        print(f"  {stolen:.0%} of the processors' time went to other machines; {'again' if number < TRIES else 'giving up'}", file=sys.stderr, flush=True)
    return min(results, key=lambda result: result[1])[0]
