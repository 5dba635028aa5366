#!/usr/bin/env python3
"""Make a model of which nearly all is a table of n-gram embeddings, of any size; needs `make llama`.

It is the tiny qwen4exp of archs/ with more rows: those of a token are found by hashes of the last two and three tokens, so a text of any
vocabulary looks up rows all over the table. Every row has bytes of its own kind in the file, none is a hole.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type

import tiny_vocab
from archs.spec import ARCHITECTURES, Architecture
from archs.tensors import REPOSITORY, Asker, tensors_of
from gguf_stream import StreamedGguf, tensor_bytes
from parameters import Wide, add_parameters
from random_blocks import random_tensor
from tiny_layers import Tensor
from tiny_models import tensor_content

NAME = "table"
TABLE = "per_layer_token_embd.weight"
# Rows that a token looks up, half of them by its bigram and half by its trigram. Together they are as wide as the token.
HEADS = 8
CHUNK_ROWS = 1 << 16
MULTIPLIERS = (0x9E3779B97F4A7C15 >> 1, 0xC2B2AE3D27D4EB4F >> 1, 0x165667B19E3779F9)


def described(rows: int, width: int) -> Architecture:
    """The tiny model with so many rows, and with layers of so many values."""
    tiny = ARCHITECTURES["qwen4exp"]
    per_head = rows // HEADS
    table = {
        "context_length": 8192,
        "embedding_length": width,
        "attention.head_count": width // 32,
        "embedding_length_per_layer_input": width // HEADS,
        "ple.heads_per_ngram": HEADS // 2,
        "ple.layer_multipliers": Wide(MULTIPLIERS),
        "ple.head_offsets": Wide(range(0, HEADS * per_head, per_head)),
        "ple.head_vocab_sizes": Wide([per_head] * HEADS),
    }
    return replace(tiny, name=NAME, parameters=tiny.parameters | table)


def table_rows(tensor: Tensor, seed: int) -> Iterator[np.ndarray]:
    """Random rows, in chunks that differ by how far one and the same set of rows is turned."""
    rng = np.random.default_rng(seed)
    count, values = tensor.shape
    kept = random_tensor(rng, (min(CHUNK_ROWS, count), values), Type.Q8_0, values**-0.5).reshape(min(CHUNK_ROWS, count), -1)
    for number, first in enumerate(range(0, count, CHUNK_ROWS)):
        yield np.roll(kept, 4099 * number, axis=0)[: count - first]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", type=Path, metavar="DST.gguf", help="where to write the model")
    parser.add_argument("--bytes", type=int, required=True, metavar="N", help="size of the table")
    parser.add_argument("--width", type=int, default=256, help="values of a token between layers, a multiple of 256: what computing costs (default 256)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all weights (default 1)")
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build" / "llama", help="the build of llama.cpp that is asked")
    arguments = parser.parse_args()

    if arguments.width < 256 or arguments.width % 256:
        parser.error(f"--width {arguments.width} is no multiple of 256")
    rows = arguments.bytes // tensor_bytes((arguments.width // HEADS,), Type.Q8_0)
    if not HEADS <= rows < 1 << 31:
        parser.error(f"--bytes {arguments.bytes}: that is {rows} rows, {HEADS} to {(1 << 31) - 1} are possible")
    architecture = described(rows, arguments.width)
    with tempfile.TemporaryDirectory() as folder:
        # llama.cpp makes what it is asked about, in memory: a model with a few rows is asked for.
        few = tensors_of(described(HEADS, arguments.width), Asker(arguments.build, Path(folder)), quiet=False)
    rows -= rows % HEADS
    tensors = [replace(tensor, shape=(rows, *tensor.shape[1:])) if tensor.name == TABLE else tensor for tensor in few]
    output = StreamedGguf(arguments.destination, architecture.architecture)
    add_parameters(output.metadata, architecture.architecture, architecture.parameters)
    tiny_vocab.add_vocabulary(output.metadata)
    output.metadata.add_quantization_version(2)
    for tensor in tensors:
        content = (
            (lambda tensor=tensor: table_rows(tensor, arguments.seed))
            if tensor.name == TABLE
            else (lambda tensor=tensor: [tensor_content(NAME, tensor, arguments.seed)])
        )
        output.add(tensor.name, tensor.shape, tensor.tensor_type, content)
    output.require_room("choose fewer --bytes or another disk")
    output.write()
    print(f"{arguments.destination}: {arguments.destination.stat().st_size} bytes")


if __name__ == "__main__":
    main()
