"""Runs two real models twice each: resident, and streamed through a fraction of their memory. The text must not differ.

The models are SmolLM2-135M-Instruct, and a mixture of experts made from it. They are small, so that the demo is quick;
what it shows is the same at any size.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build/llama/bin/llama-completion"
MODELS = [ROOT / "build/models/smollm2.gguf", ROOT / "build/models/smollm2-moe.gguf"]
PROMPT = "Once upon a time, a small computer wanted to think big thoughts."
TOKENS = 48
SHARE = 0.4
# llama.cpp writes from a thread of its own that may not finish before the program does: now and then the end of the
# output is missing, and with it this line.
LAST_LINE = "graphs reused"
ATTEMPTS = 5
STREAMABLE = re.compile(r"blk\.\d+\.ffn_(gate|up|down)(_exps)?\.weight")


def streamable_bytes(model: Path) -> int:
    """The bytes of the weights that libhypura may stream."""
    return sum(int(tensor.n_bytes) for tensor in GGUFReader(model).tensors if STREAMABLE.fullmatch(tensor.name))


def complete(model: Path, settings: dict[str, str]) -> tuple[str, float]:
    """The greedy continuation of the prompt, and the tokens per second at which it came."""
    # One difference is wanted between the two runs, so llama.cpp's repacking of resident weights is off in both.
    command = [PROGRAM, "-m", model, "-p", PROMPT, "-n", str(TOKENS), "--temp", "0", "--no-repack", "-no-cnv"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HYPURA")}
    for _ in range(ATTEMPTS):
        run = subprocess.run(
            [*command, "--no-display-prompt", "--ignore-eos"], env=environment | settings, capture_output=True, text=True
        )
        if run.returncode != 0:
            sys.exit(f"{PROGRAM.name} failed on {model.name} with {settings}:\n{run.stderr}")
        if LAST_LINE in run.stderr:
            break
    else:
        sys.exit(f"{PROGRAM.name} ended {ATTEMPTS} times without its last line of output:\n{run.stderr}")
    speed = re.search(r" eval time =.*?([\d.]+) tokens per second", run.stderr)
    return run.stdout.strip(), float(speed.group(1)) if speed else float("nan")


def show(model: Path) -> bool:
    """Runs one model both ways and prints what happened. Says whether the texts are equal."""
    budget_bytes = int(streamable_bytes(model) * SHARE)
    expected, resident_speed = complete(model, {"HYPURA": "off"})
    with tempfile.TemporaryDirectory() as folder:
        stats_path = Path(folder, "stats.json")
        settings = {"HYPURA": "stream", "HYPURA_RAM": str(budget_bytes), "HYPURA_STATS": str(stats_path)}
        text, speed = complete(model, settings)
        stats = json.loads(stats_path.read_text())

    uses = stats["expert_hits"] + stats["expert_misses"]
    print(f"\n{model.name}: {stats['model_bytes'] / 1e6:.0f} MB, {stats['mode']}")
    print(f"  {PROMPT} {text}")
    print(f"  memory for streamed weights  {stats['budget_bytes'] / 1e6:.1f} MB ({SHARE:.0%} of them)")
    print(f"  read from the drive          {stats['read_bytes'] / 1e6:.0f} MB in {stats['read_seconds']:.2f} s")
    print(f"  waited for the drive         {stats['stall_seconds']:.2f} s")
    if uses:
        print(f"  experts found in memory      {stats['expert_hits'] / uses:.0%} of {uses}")
    print(f"  tokens per second            {speed:.1f} streamed, {resident_speed:.1f} resident")
    print(f"  text equal to resident       {'yes' if text == expected else f'NO, resident says: {expected}'}")
    return text == expected


def main() -> None:
    results = [show(model) for model in MODELS]
    if not all(results):
        sys.exit("\nThe streamed text differs: this is a bug, please report it.")


if __name__ == "__main__":
    main()
