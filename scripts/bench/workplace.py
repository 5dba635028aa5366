"""Where the benches find programs and keep files, how large they are to be (`SCALE`), and how they begin and end."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "build/llama/bin/llama-server"
SMOLLM2 = ROOT / "build/models/smollm2.gguf"
TRAINED_MOE = ROOT.parent / "shared/models/minimoe-64x8-q3_k_s.gguf"
PROMPTS = Path(__file__).with_name("prompts.txt")

# For the memory cgroups, which are the tests'. Last, since the tests have modules of common names.
sys.path.append(str(ROOT / "tests/e2e"))


def is_small() -> bool:
    """Whether `SCALE=small` asks for models of an eighth of the layers."""
    scale = os.environ.get("SCALE", "full")
    if scale not in ("full", "small"):
        sys.exit(f"SCALE={scale}: it is full (the default) or small")
    return scale == "small"


def cache_folder() -> Path:
    """Where generated models are kept."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hypura/bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prompts(count: int) -> list[str]:
    """Real text and code, 100 to 300 tokens each; the file separates them by lines of dashes."""
    texts = [text.strip("\n") for text in PROMPTS.read_text().split("\n----\n")]
    if not 1 <= count <= len(texts):
        sys.exit(f"--prompts {count}: there are {len(texts)} in {PROMPTS}")
    return texts[:count]


def options(description: str | None, add: Callable[[argparse.ArgumentParser], None] = lambda _: None) -> argparse.Namespace:
    """The command line: what all benches have, and what `add` adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each kind (default %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench", metavar="DIR", help="where the figures go as JSON (default build/bench)")
    add(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds is 1 or more")
    if not SERVER.exists():
        sys.exit(f"{SERVER} is not built; run make llama")
    return arguments
