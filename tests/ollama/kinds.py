"""GGUF files that go with a model: a header that says so, and nothing else."""

import struct
from pathlib import Path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def write(path: Path, **pairs: str) -> Path:
    """A file with these text values and no tensors; an underscore stands for a dot."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs))
    path.write_bytes(header + b"".join(text(key.replace("_", ".")) + struct.pack("<I", 8) + text(value) for key, value in pairs.items()))
    return path
