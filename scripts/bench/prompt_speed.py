"""The first token: how long prompts of about 6, 128, 512 and 2048 tokens take from cold, beside what computing and the drive need for them.

The trained mixture of experts, widened to 8 GB, in 3 GiB. A run begins with an empty cache of experts and ends with the first token. While
it loads, llama-server computes two tokens of its own, to see what its context can do; what is told from the start of the program counts
that as well. The limit of a prompt is the longer of computing it with everything in memory, and of reading each expert that it uses
once; which those are a run of its own records. Stock llama.cpp by mmap runs beside it. The drive is measured before and after each of
our runs.
"""

import argparse
import tempfile
from itertools import cycle, islice
from pathlib import Path

from belady import read_trace
from made_models import wide_moe
from memory import limited
from roofline import Roofline
from runs import Kind, Run, in_rounds, median, require_equal_texts, run_once
from table import gigabytes, number, percent, print_table, write_json
from workplace import options, prompts

LENGTHS = (6, 128, 512, 2048)
# Of this tokenizer, on text and code.
CHARACTERS_PER_TOKEN = 4.0
MMAP, OURS, RESIDENT = "llama.cpp, mmap", "ours", "llama.cpp, all in memory"
OFF = {"HYPURA": "off"}
# Room for the longest prompt, however it is cut into tokens; the model was trained with 1024, and llama-server allows no more.
ROOM = ("-c", "4096", "--override-kv", "qwen3moe.context_length=int:4096")
FLAGS = (*ROOM, "--no-warmup")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit-gib", type=float, default=3.0, help="memory limit in GiB (default 3)")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="TOKENS", help="about so many (default 6 128 512 2048)")
    parser.add_argument("--seconds", type=float, default=300, help="time that a stock run under a limit may take (default 300)")


def text_of(tokens: int) -> str:
    """Real text and code of about so many tokens."""
    return "".join(islice(cycle("\n".join(prompts(4))), int(tokens * CHARACTERS_PER_TOKEN)))


def bytes_once(model: Path, text: str) -> float:
    """Of all experts that a prompt uses, each once."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.csv")
        settings = {"HYPURA": "stream", "HYPURA_RAM": str(int(0.4 * model.stat().st_size)), "HYPURA_TRACE": str(trace)}
        run = run_once(Kind("trace", model, settings, [text], 1, flags=FLAGS))
        if run.failure:
            raise SystemExit(f"the recording of {model.name} failed: {run.failure}")
        demands, expert_bytes = read_trace(trace)
    return expert_bytes * len({expert for demand in demands if not demand.is_decode for expert in demand.experts})


def bench_length(model: Path, text: str, through: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, list[Run]]:
    kinds = [
        Kind(MMAP, model, OFF, [text], 1, through, FLAGS, arguments.seconds),
        Kind(OURS, model, {}, [text], 1, through, FLAGS, beside_drive=True),
        Kind(RESIDENT, model, OFF, [text], 1, flags=ROOM),
    ]
    runs = in_rounds(kinds, arguments.rounds)
    require_equal_texts(runs)
    return runs


def from_the_start(some: list[Run]) -> str:
    """Seconds from the program's start until the first token."""
    return number(median(run.load_seconds + run.prompt_seconds if run.prompt_seconds else None for run in some))


def row(runs: dict[str, list[Run]], needed_bytes: float) -> list[str]:
    seconds = {name: median(run.prompt_seconds or None for run in some) for name, some in runs.items()}
    drive = median(run.drive_bytes_per_second for run in runs[OURS])
    limit = Roofline.of(seconds[RESIDENT], needed_bytes, drive)
    return [
        str(runs[OURS][0].prompt_tokens),
        number(seconds[MMAP]) or runs[MMAP][0].failure or "",
        number(seconds[OURS]),
        number(seconds[RESIDENT]),
        from_the_start(runs[MMAP]),
        from_the_start(runs[OURS]),
        gigabytes(needed_bytes),
        gigabytes(median(run.stats.get("read_bytes") for run in runs[OURS])),
        gigabytes(drive),
        f"{limit.seconds:.2f} ({limit.limit})",
        percent(limit.seconds / seconds[OURS]),
    ]


def main() -> None:
    arguments = options(__doc__, add_options)
    model = wide_moe()
    results, rows = {}, []
    for length in arguments.lengths:
        text = text_of(length)
        needed_bytes = bytes_once(model, text)
        with limited(int(arguments.limit_gib * (1 << 30))) as through:
            runs = bench_length(model, text, through, arguments)
        results[length] = {"bytes_once": needed_bytes, "runs": runs}
        rows.append(row(runs, needed_bytes))
    print(f"{model.name}, {arguments.limit_gib:g} GiB unless all in memory, seconds to the first token, medians of {arguments.rounds}\n")
    from_start = ["mmap, from the start", "ours, from the start"]
    print_table(["tokens", "mmap", "ours", "all in memory", *from_start, "GB once", "GB read", "GB/s drive", "limit", "of the limit"], rows)
    write_json(arguments.output, "prompts", {"model": model.name, "lengths": results})


if __name__ == "__main__":
    main()
