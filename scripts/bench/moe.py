"""Expert streaming beside its physical limit, on real prompts, under memory limits of 25%, 40% and 60% of the file.

Two models: the trained mixture of experts of the tests, its experts widened to 8 GB, whose routing is real; and one in the shape of
Mixtral 8x7B (28 GB; SCALE=small: 4 of its 32 layers, 3.8 GB). At every limit, in turn, page cache dropped before each run: stock llama.cpp
by mmap, ours without prefetching, ours as it comes, and stock with everything in memory and no limit where that fits. The drive is measured
before and after each of our runs.

Columns: tokens per second of the prompts (a cold start included) and of generation, and of generation: hit rate; Belady's hit rate on the
recorded ids in a cache of as many experts as our budget holds; read and waited for per token; the drive's speed while reading, and as
measured; the roofline, which is the longer of computing a token when everything is in memory and of reading what the run without
prefetching missed; ours as a share of it. Where the model does not fit in memory, computing is extrapolated from files of fewer layers.

Between the prompt and the generated tokens lies a pause of about two seconds, for a snapshot of the statistics. Texts must be equal.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from belady import Demand, hit_rate, read_trace
from made_models import shaped, wide_moe
from memory import limited
from roofline import Roofline, extrapolated_seconds, fits_in_memory
from runs import Kind, Run, drive_speeds, in_rounds, median, per_token, reached, require_equal_texts, run_once, speed
from table import gigabytes, number, percent, print_table, write_json
from workplace import is_small, options, prompts

SHAPE = "mixtral-8x7b"
FEW_LAYERS, MORE_LAYERS = 2, 8
MMAP, NO_PREFETCH, OURS, RESIDENT = "llama.cpp, mmap", "ours, HYPURA_PREFETCH=off", "ours", "llama.cpp, all in memory"
MMAP_TOKENS = 8
OFF = {"HYPURA": "off"}
COLUMNS = ["", "prompt t/s", "t/s", "hits", "Belady", "GB/token", "wait s/token", "GB/s reached", "GB/s drive", "roofline t/s", "share"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limits", type=int, nargs="+", default=[25, 40, 60], metavar="PERCENT", help="memory limits (default 25 40 60)")
    parser.add_argument("--models", nargs="+", choices=["trained", "mixtral"], default=["trained", "mixtral"], help="which (default both)")
    parser.add_argument("--prompts", type=int, default=4, help="how many of prompts.txt (default 4)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate for each prompt (default 64)")
    parser.add_argument("--mmap-seconds", type=float, default=300, help="time that a stock run under a limit may take (default 300)")


@dataclass
class Subject:
    """A model, what it is asked, and which experts it used when answering."""

    model: Path
    texts: list[str]
    tokens: int
    demands: list[Demand]
    expert_bytes: float


def record(model: Path, texts: list[str], tokens: int) -> Subject:
    """A run of its own records the ids of the experts: they do not depend on what is in memory."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.csv")
        settings = {"HYPURA": "stream", "HYPURA_RAM": str(int(0.4 * model.stat().st_size)), "HYPURA_TRACE": str(trace)}
        run = run_once(Kind("trace", model, settings, texts, tokens))
        if run.failure:
            raise SystemExit(f"the recording of {model.name} failed: {run.failure}")
        demands, expert_bytes = read_trace(trace)
    return Subject(model, texts, tokens, demands, expert_bytes)


def kinds_under(through: tuple[str, ...], subject: Subject, mmap_seconds: float) -> list[Kind]:
    model, texts, tokens = subject.model, subject.texts, subject.tokens
    kinds = [
        Kind(MMAP, model, OFF, texts[:1], MMAP_TOKENS, through, ("--no-warmup",), mmap_seconds),
        Kind(NO_PREFETCH, model, {"HYPURA_PREFETCH": "off"}, texts, tokens, through, beside_drive=True),
        Kind(OURS, model, {}, texts, tokens, through, beside_drive=True),
    ]
    if fits_in_memory(model):
        kinds.append(Kind(RESIDENT, model, OFF, texts, tokens))
    return kinds


def extrapolated_compute(subject: Subject, rounds: int) -> float | None:
    """Seconds of computing per token of a made shape that does not fit in memory."""
    if SHAPE not in subject.model.name:
        return None
    files = [shaped(SHAPE, layers) for layers in (FEW_LAYERS, MORE_LAYERS)]
    runs = in_rounds([Kind(file.stem, file, OFF, subject.texts[:1], subject.tokens) for file in files], rounds)
    few, more = ((file, 1 / speed(runs[file.stem])) for file in files)
    return extrapolated_seconds(few, more, subject.model)


def run_hits(run: Run) -> float | None:
    uses = run.decode_stats.get("expert_hits", 0) + run.decode_stats.get("expert_misses", 0)
    return run.decode_stats["expert_hits"] / uses if uses else None


def roofline(run: Run, compute_seconds: float | None, missed_bytes: float | None) -> Roofline | None:
    if not run.drives or missed_bytes is None or compute_seconds is None:
        return None
    return Roofline.of(compute_seconds, missed_bytes, run.drive_bytes_per_second)


def table_row(name: str, runs: list[Run], subject: Subject, compute_seconds: float | None, missed_bytes: float | None) -> list[str]:
    budget_bytes = median(run.stats.get("budget_bytes") for run in runs)
    best = hit_rate(subject.demands, int(budget_bytes / subject.expert_bytes)) if budget_bytes else None
    rooflines = [roofline(run, compute_seconds, missed_bytes) for run in runs]
    return [
        name,
        number(median(run.prompt_speed for run in runs), 1),
        number(speed(runs)) or runs[0].failure or "too few",
        percent(median(run_hits(run) for run in runs)),
        percent(best),
        gigabytes(per_token(runs, "read_bytes")),
        number(per_token(runs, "stall_seconds"), 3),
        gigabytes(median(map(reached, runs))),
        gigabytes(median(drive.own for drive in drive_speeds(runs))),
        number(median(1 / roof.seconds for roof in rooflines if roof)),
        percent(median(roof.share(run.speed) for roof, run in zip(rooflines, runs) if roof and run.speed)),
    ]


def print_predictions(runs: list[Run]) -> None:
    """Whatever the statistics tell of predictors."""
    stats = runs[-1].stats
    for key in sorted(stats):
        if "recall" in key or "predict" in key or key.startswith("prefetch"):
            print(f"  {key}: {stats[key]}")


def bench_limit(subject: Subject, percent_of_file: int, arguments: argparse.Namespace, computed: float | None) -> dict[str, list[Run]]:
    limit_bytes = subject.model.stat().st_size * percent_of_file // 100
    with limited(limit_bytes) as through:
        runs = in_rounds(kinds_under(through, subject, arguments.mmap_seconds), arguments.rounds)
    require_equal_texts(runs)
    resident_speed = speed(runs.get(RESIDENT, []))
    compute_seconds = 1 / resident_speed if resident_speed else computed
    missed_bytes = per_token(runs[NO_PREFETCH], "read_bytes")
    file_bytes = subject.model.stat().st_size
    print(f"\n{subject.model.name}: {file_bytes / 1e9:.1f} GB, memory limit {percent_of_file}% ({limit_bytes / 1e9:.1f} GB), ", end="")
    print(f"medians of {arguments.rounds}\n")
    print_table(COLUMNS, [table_row(name, some, subject, compute_seconds, missed_bytes) for name, some in runs.items()])
    print_predictions(runs[OURS])
    stock, ours = speed(runs[MMAP]), speed(runs[OURS])
    if stock and ours:
        print(f"  times mmap: {ours / stock:.1f}")
    return runs


def bench_model(model: Path, arguments: argparse.Namespace) -> dict[str, dict[str, list[Run]]]:
    subject = record(model, prompts(arguments.prompts), arguments.tokens)
    computed = None if fits_in_memory(model) else extrapolated_compute(subject, arguments.rounds)
    return {f"{share}%": bench_limit(subject, share, arguments, computed) for share in arguments.limits}


def main() -> None:
    arguments = options(__doc__, add_options)
    makers = {"trained": wide_moe, "mixtral": lambda: shaped(SHAPE, 4 if is_small() else 32)}
    models = [makers[name]() for name in arguments.models]
    results = {model.name: bench_model(model, arguments) for model in models}
    write_json(arguments.output, "moe", {"models": results})


if __name__ == "__main__":
    main()
