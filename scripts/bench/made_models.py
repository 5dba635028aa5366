"""The benches' models: made once by the generators of scripts/models, and kept in the user's cache directory."""

import shutil
import subprocess
import sys
from pathlib import Path

from workplace import ROOT, SMOLLM2, TRAINED_MOE, cache_folder

GENERATORS = ROOT / "scripts/models"
# What must stay free on the disk after a model was made.
MARGIN_BYTES = 1 << 30


def shaped(name: str, layers: int) -> Path:
    """A model in the shape of `llama-70b` or `mixtral-8x7b`, with so many of its layers."""
    require(SMOLLM2, "make models")
    command = [GENERATORS / "make_shaped.py", name, "--layers", str(layers), "--tokenizer", SMOLLM2]
    size = subprocess.run([sys.executable, *command, "-", "--size"], check=True, capture_output=True, text=True)
    return made(f"{name}-{layers}-layers.gguf", int(size.stdout), [*command])


def wide_moe() -> Path:
    """The trained mixture of experts, its experts widened until it has 8 GB: real routing."""
    require(TRAINED_MOE, "this bench needs the trained model that the tests use")
    return made("minimoe-wide-q8_0.gguf", 8_060_000_000, [GENERATORS / "widen_moe.py", TRAINED_MOE, "--ffn", "6400"])


def wide_smollm2(hidden: int) -> Path:
    """SmolLM2 with so many hidden units in each layer instead of 1536: SmolLM2 can draft for it."""
    require(SMOLLM2, "make models")
    size_bytes = 100_000_000 + hidden * 3 * 30 * 576 * 34 // 32
    return made(f"smollm2-wide-{hidden}.gguf", size_bytes, [GENERATORS / "widen_dense.py", SMOLLM2, "--ffn", str(hidden)])


def require(path: Path, remedy: str) -> None:
    if not path.exists():
        sys.exit(f"{path} is missing: {remedy}")


def made(file_name: str, size_bytes: int, command: list[Path | str]) -> Path:
    """The model of this name, which `command` makes when a destination is added to it."""
    model = cache_folder() / file_name
    if model.exists():
        return model
    free_bytes = shutil.disk_usage(model.parent).free
    if size_bytes + MARGIN_BYTES > free_bytes:
        sys.exit(
            f"{model} needs {size_bytes / 1e9:.1f} GB and {free_bytes / 1e9:.1f} GB are free there: make room, "
            "name another disk in XDG_CACHE_HOME, or set SCALE=small for models of an eighth of the layers"
        )
    print(f"making {model} ({size_bytes / 1e9:.1f} GB) ...", file=sys.stderr)
    subprocess.run([sys.executable, *command, model], check=True, stdout=sys.stderr)
    return model
