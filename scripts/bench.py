"""The table of the README: one mixture of experts of 8 GB, resident, and under a memory limit with and without libhypura.

The model is the trained one of the tests, its experts widened without a change of their function. The runs are taken in
turn, page cache dropped before each, and medians printed; the texts must be equal.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/e2e"))
from memory_cgroup import memory_limit  # noqa: E402

PROGRAM = ROOT / "build/llama/bin/llama-completion"
TRAINED = ROOT.parent / "shared/models/minimoe-64x8-q3_k_s.gguf"
WIDE_NAME = "minimoe-wide-q8_0.gguf"
PROMPT = "The standard library function that opens a file is"
# Streamed by page faults the model is slow: fewer tokens tell as much.
TOKENS = {"llama.cpp, mmap": 12, "llama.cpp with libhypura": 64, "llama.cpp, all in memory": 64}


def wide_model() -> Path:
    """The widened model, made once in the user's cache directory."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "hypura/bench")
    model = folder / WIDE_NAME
    if not model.exists():
        if not TRAINED.exists():
            sys.exit(f"{TRAINED} is not there: this bench needs the trained model that the tests use")
        folder.mkdir(parents=True, exist_ok=True)
        widen = [sys.executable, ROOT / "scripts/models/widen_moe.py", TRAINED, model, "--ffn", "6400", "--type", "q8_0"]
        subprocess.run(widen, check=True)
    return model


def drop_caches() -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("the page cache cannot be dropped here: the mmap runs start warm", file=sys.stderr)


def complete(model: Path, tokens: int, setting: str, through: tuple[str, ...]) -> tuple[float, str]:
    """Tokens per second of one run, and its text."""
    drop_caches()
    command = [PROGRAM, "-m", model, "-p", PROMPT, "-n", str(tokens), "-c", "1024", "--temp", "0"]
    command += ["--no-repack", "-no-cnv", "--no-display-prompt", "--ignore-eos"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HYPURA")}
    for _ in range(5):
        run = subprocess.run(
            [*through, *command], env=environment | {"HYPURA": setting}, capture_output=True, text=True, check=False
        )
        speed = re.search(r" eval time =.*?([\d.]+) tokens per second", run.stderr.split("prompt eval time")[-1])
        if run.returncode == 0 and speed:  # the log's tail is lost now and then at exit
            return float(speed.group(1)), run.stdout.strip()
    sys.exit(f"{PROGRAM.name} gave no figures:\n{run.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default 3)")
    parser.add_argument("--limit-gib", type=float, default=3.0, help="memory limit in GiB (default 3)")
    arguments = parser.parse_args()
    model = wide_model()
    speeds: dict[str, list[float]] = {name: [] for name in TOKENS}
    texts: dict[str, str] = {}
    try:
        with memory_limit(int(arguments.limit_gib * (1 << 30))) as limited:
            for _ in range(arguments.rounds):
                for name, tokens in TOKENS.items():
                    setting = "auto" if "libhypura" in name else "off"
                    speed, texts[name] = complete(model, tokens, setting, () if "all" in name else limited)
                    speeds[name].append(speed)
                    print(f"{name}: {speed:.2f} tokens per second", file=sys.stderr)
    except pytest.skip.Exception as reason:
        sys.exit(str(reason))
    whole = texts["llama.cpp, all in memory"]
    if not all(whole.startswith(text) for text in texts.values()):
        sys.exit(f"the texts differ: {texts}")
    print(f"{model.name}, {arguments.limit_gib:g} GiB unless all in memory, {os.cpu_count()} cores, {arguments.rounds} rounds")
    for name, values in speeds.items():
        print(f"  {name:28} {statistics.median(values):6.2f} tokens per second ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
