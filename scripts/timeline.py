#!/usr/bin/env python3
"""Draw one token of a streamed model: what was read, computed and waited for, and when. Are there gaps in which the drive idles?

The input is what libhypura records with HYPURA_TIMELINE=FILE, lines `seconds,event,tensor,bytes`. Events come in pairs: `read_begin` and
`read_end` (a block is read; an expert's is called `tensor#expert`), `wait_begin` and `wait_end` (computing waits for it), `compute_begin` and
`compute_end` (a multiplication with it). A token begins where the tensor that was computed first of all is computed again after another layer.

The picture has the reads in flight over time, computing and waiting, and a row for each layer with its reads, waits and multiplications.
"""

import argparse
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from timeline_svg import Picture, draw

EVENTS = re.compile(r"(read|wait|compute)_(begin|end)")
LAYER = re.compile(r"blk\.(\d+)\.")
OTHER_LAYER = "other"


@dataclass(frozen=True)
class Interval:
    """Something that went on for a while; `kind` is read, wait or compute."""

    kind: str
    tensor: str
    begin: float
    end: float
    bytes: int = 0

    @property
    def layer(self) -> int | str:
        match = LAYER.match(self.tensor)
        return int(match.group(1)) if match else OTHER_LAYER


def read_events(path: Path) -> list[tuple[float, str, str, int]]:
    """(seconds, event, tensor, bytes) in the order of time."""
    events = []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"error: {path}: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith(("#", "seconds,")):
            continue
        try:
            seconds, event, tensor, size = line.split(",")
            entry = (float(seconds), event, tensor, int(size))
        except ValueError:
            raise SystemExit(f"error: {path}:{number}: not seconds,event,tensor,bytes: {line}") from None
        if not EVENTS.fullmatch(event) or not math.isfinite(entry[0]):
            raise SystemExit(f"error: {path}:{number}: there is no event {event} at {seconds} s")
        events.append(entry)
    return sorted(events, key=lambda event: event[0])


def intervals(events: list[tuple[float, str, str, int]]) -> list[Interval]:
    """Begins joined with their ends. What began before the first event or has not ended by the last one is cut there."""
    found = []
    open_since: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for seconds, event, tensor, size in events:
        kind, _, edge = event.partition("_")
        if edge == "begin":
            open_since[kind, tensor].append((seconds, size))
            continue
        begun = open_since[kind, tensor]
        begin, begin_bytes = begun.pop(0) if begun else (events[0][0], 0)
        found.append(Interval(kind, tensor, begin, seconds, max(size, begin_bytes)))
    for (kind, tensor), begun in open_since.items():
        found += [Interval(kind, tensor, begin, events[-1][0], size) for begin, size in begun]
    return sorted(found, key=lambda interval: interval.begin)


def token_starts(found: list[Interval]) -> list[float]:
    """When the tensor that was computed first begins to be computed after another layer was.

    Within its layer it may come several times: experts come in waves, and while one waits, other matrices are computed early. Of a single
    layer, it begins after another tensor was.
    """
    computed = [interval for interval in found if interval.kind == "compute"]
    names = [interval.tensor.partition("#")[0] for interval in computed]
    layers = [interval.layer for interval in computed]
    places = layers if len(set(layers)) > 1 else names
    return [
        interval.begin
        for index, interval in enumerate(computed)
        if names[index] == names[0] and (index == 0 or places[index - 1] != places[index])
    ]


def clipped(found: list[Interval], begin: float, end: float) -> list[Interval]:
    """What happened between two moments, in seconds from the first."""
    inside = [interval for interval in found if interval.begin < end and interval.end > begin]
    return [
        Interval(interval.kind, interval.tensor, max(interval.begin, begin) - begin, min(interval.end, end) - begin, interval.bytes)
        for interval in inside
    ]


def union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same moments as spans that do not overlap."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def depth_steps(reads: list[Interval]) -> list[tuple[float, int]]:
    """The number of reads in flight from each moment on at which it changes, beginning at 0."""
    changes: dict[float, int] = defaultdict(int)
    changes[0.0] += 0
    for read in reads:
        changes[read.begin] += 1
        changes[read.end] -= 1
    depth = 0
    steps = []
    for moment in sorted(changes):
        depth += changes[moment]
        steps.append((moment, depth))
    return steps


def layer_order(layer: int | str) -> tuple[bool, int]:
    return (True, 0) if isinstance(layer, str) else (False, layer)


def picture(found: list[Interval], token: int) -> Picture:
    """The picture of a token, counted from 0. Exits when the recording holds no such token whole."""
    starts = token_starts(found)
    if not 0 <= token < len(starts) - 1:
        raise SystemExit(f"error: there is no whole token {token}: the recording holds {max(len(starts) - 1, 0)}, counted from 0")
    begin, end = starts[token], starts[token + 1]
    inside = clipped(found, begin, end)
    reads = [interval for interval in inside if interval.kind == "read"]
    read_bytes = sum(interval.bytes for interval in found if interval.kind == "read" and begin < interval.end <= end)
    layers = sorted({interval.layer for interval in inside}, key=layer_order)
    spans = {
        kind: {layer: union([(i.begin, i.end) for i in inside if i.kind == kind and i.layer == layer]) for layer in layers}
        for kind in ("read", "wait", "compute")
    }
    return Picture(token, end - begin, read_bytes, depth_steps(reads), layers, spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, metavar="IN.csv", help="what HYPURA_TIMELINE recorded")
    parser.add_argument("destination", type=Path, metavar="OUT.svg", help="the picture")
    parser.add_argument("--token", type=int, default=0, metavar="N", help="which token, counted from 0 (default 0)")
    arguments = parser.parse_args()
    shown = picture(intervals(read_events(arguments.recording)), arguments.token)
    arguments.destination.write_text(draw(shown))
    print(f"{arguments.destination}: token {arguments.token}, {shown.seconds * 1e3:.1f} ms, the drive idle for {shown.idle_share:.1%} of it")


if __name__ == "__main__":
    main()
