"""What a bench measures: one kind of run, repeated in rounds with the other kinds in turn, so that a drifting machine drifts for all."""

import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import workplace  # noqa: F401  (makes the tests' modules known)
from drive import DriveSpeed, drive_speed
from page_cache import bring_in
from serving import Answer, Serving, ServerDied
from stolen import ProcessorTime, undisturbed


@dataclass(frozen=True)
class Kind:
    """One kind of run of a model."""

    name: str
    model: Path
    settings: dict[str, str]
    prompts: Sequence[str]
    tokens: int
    through: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    # All that one run may take for its answers; None for no limit.
    seconds: float | None = None
    # Whether the drive is to be measured before and after.
    beside_drive: bool = False
    # The share of the model that somebody else holds in the page cache.
    cached_share: float = 0.0


@dataclass
class Run:
    """One run's result. `decode_stats` holds the growth of libhypura's counters while tokens were generated."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    # From the program's start until it served.
    load_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0
    texts: list[list[int]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    decode_stats: dict[str, float] = field(default_factory=dict)
    stats: dict = field(default_factory=dict)
    drives: list[DriveSpeed] = field(default_factory=list)
    # The share of the processors' time that other machines had instead.
    stolen: float = 0.0
    failure: str | None = None

    @property
    def drive_bytes_per_second(self) -> float | None:
        """What the drive gave before and after, on average."""
        return statistics.fmean(drive.own for drive in self.drives) if self.drives else None

    @property
    def prompt_speed(self) -> float | None:
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else None

    @property
    def speed(self) -> float | None:
        """Generated tokens per second; None when too few came."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else None

    def per_token(self, counter: str) -> float | None:
        """The growth of a counter for each generated token; None when libhypura did not count."""
        passes = self.decode_stats.get("tokens")
        return self.decode_stats[counter] / passes if passes else None


def drop_caches() -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("the page cache cannot be dropped here: the mmap runs start warm", file=sys.stderr)


def run_once(kind: Kind) -> Run:
    """Answers every prompt, one after the other: first a single token, which is the time of the prompt, then all."""
    drop_caches()
    run = Run()
    left = kind.seconds
    measure_drive(kind, run)
    if kind.cached_share:
        bring_in(kind.model, kind.cached_share)
    try:
        with Serving(kind.model, kind.settings, kind.through, kind.flags) as server:
            run.load_seconds = server.load_seconds
            time = ProcessorTime()
            for prompt in kind.prompts:
                left = answer_prompt(server, kind, prompt, run, left)
            run.stats = server.stats()
            run.stolen = time.stolen()
    except ServerDied as reason:
        run.failure = str(reason)
    measure_drive(kind, run)
    return run


def run_undisturbed(kind: Kind) -> Run:
    """A run that kept its processors, if one can be had."""

    def measure() -> tuple[Run, float]:
        run = run_once(kind)
        return run, run.stolen

    return undisturbed(measure)


def measure_drive(kind: Kind, run: Run) -> None:
    if kind.beside_drive:
        run.drives.append(drive_speed(kind.model))


def answer_prompt(server: Serving, kind: Kind, prompt: str, run: Run, left: float | None) -> float | None:
    """Adds one prompt to the run; returns the seconds that are left."""
    if left is not None and left <= 0:
        return left
    read = server.complete(prompt, 1, left)
    left = remaining(left, read, kind)
    if read.first_seconds is not None:
        run.prompt_tokens += read.prompt_tokens
        run.prompt_seconds += read.first_seconds
    if left is not None and left <= 0:
        run.failure = f"no token in {kind.seconds:.0f} s" if not run.prompt_tokens else run.failure
        return left
    before = server.stats()
    written = server.complete(prompt, kind.tokens, left)
    after = server.stats()
    run.texts.append(written.tokens)
    run.written.append(written.text)
    if len(written.tokens) > 1:
        run.decode_tokens += len(written.tokens) - 1
        run.decode_seconds += written.last_seconds - written.first_seconds
    run.drafted += written.drafted
    run.accepted += written.accepted
    for name, value in after.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            run.decode_stats[name] = run.decode_stats.get(name, 0) + value - (before.get(name) or 0)
    return remaining(left, written, kind)


def remaining(left: float | None, answer: Answer, kind: Kind) -> float | None:
    """Of the seconds that a run may take; none when an answer was cut short before its first token."""
    if left is None:
        return None
    return 0.0 if answer.last_seconds is None else left - answer.last_seconds


def in_rounds(kinds: Iterable[Kind], rounds: int) -> dict[str, list[Run]]:
    """Runs of every kind, by its name."""
    runs: dict[str, list[Run]] = {kind.name: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            run = run_undisturbed(kind)
            runs[kind.name].append(run)
            # The rest of a failure is the server's log.
            what = run.failure.splitlines()[0] if run.failure else f"{shown(run.prompt_speed)} tokens per second of prompt, {shown(run.speed)} generated"
            print(f"{kind.name}: {what}", file=sys.stderr, flush=True)
    return runs


def shown(speed: float | None) -> str:
    return "no" if speed is None else f"{speed:.2f}"


def median(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def speed(runs: list[Run]) -> float | None:
    return median(run.speed for run in runs)


def drive_speeds(runs: list[Run]) -> list[DriveSpeed]:
    return [drive for run in runs for drive in run.drives]


def reached(run: Run) -> float | None:
    """Bytes per second while at least one read of libhypura was in flight."""
    seconds = run.decode_stats.get("read_seconds")
    return run.decode_stats["read_bytes"] / seconds if seconds else None


def per_token(runs: list[Run], counter: str) -> float | None:
    return median(run.per_token(counter) for run in runs)


def require_equal_texts(runs: dict[str, list[Run]]) -> None:
    """Ends the bench when two texts of the same prompt differ; a shorter one must be the beginning of a longer one."""
    longest: dict[int, tuple[str, list[int]]] = {}
    for name, some in runs.items():
        for run in some:
            for index, tokens in enumerate(run.texts):
                if len(tokens) > len(longest.get(index, ("", []))[1]):
                    longest[index] = (name, tokens)
    for name, some in runs.items():
        for run in some:
            for index, tokens in enumerate(run.texts):
                other, expected = longest[index]
                if tokens != expected[: len(tokens)]:
                    sys.exit(f"prompt {index}: the text of '{name}' differs from that of '{other}':\n{tokens}\n{expected}")
