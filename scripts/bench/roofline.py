"""The physical limit of streaming: a token takes the time of its computing or that of its reads, whichever is longer."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Roofline:
    """Seconds per token."""

    compute_seconds: float
    read_seconds: float

    @classmethod
    def of(cls, compute_seconds: float, read_bytes: float, drive_bytes_per_second: float) -> "Roofline":
        return cls(compute_seconds, read_bytes / drive_bytes_per_second)

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.read_seconds)

    @property
    def limit(self) -> str:
        return "computing" if self.compute_seconds > self.read_seconds else "the drive"

    def share(self, tokens_per_second: float) -> float:
        """How much of the possible speed this is."""
        return tokens_per_second * self.seconds


def extrapolated_seconds(few: tuple[Path, float], more: tuple[Path, float], whole: Path) -> float:
    """Seconds per token of a model that does not fit, from two of the same layers that do: (file, seconds per token) each.

    The difference of the two is the time of so many bytes of layers, free of what does not grow with layers.
    """
    (few_file, few_seconds), (more_file, more_seconds) = few, more
    few_bytes = few_file.stat().st_size
    seconds_per_byte = (more_seconds - few_seconds) / (more_file.stat().st_size - few_bytes)
    return few_seconds + seconds_per_byte * (whole.stat().st_size - few_bytes)


def memory_available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def fits_in_memory(model: Path, times: float = 1.0) -> bool:
    """A model of so many times the size of this file, with room for the context and the rest of the machine."""
    return times * model.stat().st_size + (2 << 30) < memory_available_bytes()
