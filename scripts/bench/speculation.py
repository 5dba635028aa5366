"""Speculative decoding of a streamed model: a pass over the weights checks several drafted tokens for the price of one.

The target is SmolLM2 with its feed-forward networks widened without a change of their function (6.2 GB; SCALE=small: 1.6 GB), under a memory
limit of half the file. It runs alone, with SmolLM2 itself as `--model-draft`, and with drafts by n-grams of the text so far, each streamed and
with everything in memory; the streamed text must be that of the same kind in memory. SmolLM2 is as good a draft as can be for a model
made from it, and small models repeat themselves, which suits n-grams: what is shown is what streaming makes of accepted drafts.
"""

import argparse

from made_models import wide_smollm2
from memory import limited
from runs import Kind, Run, in_rounds, median, require_equal_texts, speed
from table import gigabytes, number, percent, print_table, write_json
from workplace import SMOLLM2, is_small, options, prompts

HIDDEN_FULL, HIDDEN_SMALL = 110_592, 27_648
ALONE, DRAFT, NGRAM = "alone", "draft model", "n-gram drafts"
STREAMED, RESIDENT = "streamed", "all in memory"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--share", type=float, default=0.5, help="memory limit as a share of the file (default 0.5)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens to generate for each prompt (default 96)")
    parser.add_argument("--prompts", type=int, default=2, help="how many of prompts.txt (default 2)")
    parser.add_argument("--draft-tokens", type=int, default=8, help="tokens that are drafted for one pass (default 8)")


def draft_flags(tokens: int) -> dict[str, tuple[str, ...]]:
    count = str(tokens)
    return {
        ALONE: (),
        DRAFT: ("--spec-type", "draft-simple", "--model-draft", str(SMOLLM2), "--spec-draft-n-max", count),
        NGRAM: ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "4", "--spec-ngram-simple-size-m", count),
    }


def table_row(name: str, streamed: list[Run], resident: list[Run], alone: float | None) -> list[str]:
    drafted = sum(run.drafted for run in streamed)
    spoken = speed(streamed)
    return [
        name,
        number(spoken),
        number(spoken / alone if spoken and alone else None, 1),
        percent(sum(run.accepted for run in streamed) / drafted if drafted else None),
        gigabytes(median(run.decode_stats["read_bytes"] / run.decode_tokens for run in streamed if run.decode_stats and run.decode_tokens)),
        number(speed(resident)),
    ]


def failures(name: str, streamed: list[Run], resident: list[Run]) -> list[str]:
    """What makes figures of these runs worthless. Ends the bench when texts differ."""
    found = [f"{name}: {run.failure or 'no text'}" for run in [*streamed, *resident] if run.failure or not run.speed]
    found += [f"{name}: nothing was streamed: {run.stats}" for run in streamed if not run.failure and not run.decode_stats.get("read_bytes")]
    require_equal_texts({f"{name}, {STREAMED}": streamed, f"{name}, {RESIDENT}": resident})
    return found


def main() -> None:
    arguments = options(__doc__, add_options)
    model = wide_smollm2(HIDDEN_SMALL if is_small() else HIDDEN_FULL)
    texts = prompts(arguments.prompts)
    limit_bytes = int(model.stat().st_size * arguments.share)
    flags = draft_flags(arguments.draft_tokens)
    with limited(limit_bytes) as through:
        kinds = [Kind(f"{name}, {STREAMED}", model, {}, texts, arguments.tokens, through, some) for name, some in flags.items()]
        kinds += [Kind(f"{name}, {RESIDENT}", model, {"HYPURA": "off"}, texts, arguments.tokens, (), some) for name, some in flags.items()]
        runs = in_rounds(kinds, arguments.rounds)
    pairs = {name: (runs[f"{name}, {STREAMED}"], runs[f"{name}, {RESIDENT}"]) for name in flags}
    failed = [failure for name, both in pairs.items() for failure in failures(name, *both)]

    print(f"{model.name}: {model.stat().st_size / 1e9:.1f} GB, memory limit {limit_bytes / 1e9:.1f} GB, medians of {arguments.rounds}\n")
    rows = [table_row(name, *both, speed(pairs[ALONE][0])) for name, both in pairs.items()]
    print_table(["", "streamed t/s", "times alone", "drafts accepted", "GB read/token", "in memory t/s"], rows)
    write_json(arguments.output, "speculation", {"model": model.name, "limit_bytes": limit_bytes, "runs": runs})
    if failed:
        raise SystemExit("\n".join(failed))
    same = all(run.texts == pairs[ALONE][1][0].texts for both in pairs.values() for some in both for run in some)
    print("texts: streamed as in memory, " + ("and with drafts as without" if same else "but batches of drafts round differently, with other text"))


if __name__ == "__main__":
    main()
