#!/usr/bin/env python3
"""Widen the feed-forward networks of a dense model, without changing its function, so that the file grows to any size.

The extra rows of gate and up are rows of the same matrix drawn at random; the extra columns of down are zero, which is exact in every type.
The result has the vocabulary and, but for the rounding of `--type`, the text of its source: the source can draft for it. `widen_moe.py` does
the same to experts and tells more.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from gguf_stream import StreamedGguf, copy_metadata, open_source, tensor_bytes
from widen_moe import TYPES, encoded_rows

FFN = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.weight")


def with_more_rows(tensor: gguf.ReaderTensor, tensor_type: Type, hidden: int, seed: list[int]) -> Iterator[np.ndarray]:
    """Gate and up: yield the matrix's own rows, then some of them again."""
    rows = encoded_rows(tensor, tensor_type)
    yield rows
    yield rows[np.random.default_rng(seed).integers(0, len(rows), hidden - len(rows))]


def with_more_columns(tensor: gguf.ReaderTensor, tensor_type: Type, hidden: int) -> Iterator[np.ndarray]:
    """Down: yield the rows, every one continued with zero blocks."""
    rows = encoded_rows(tensor, tensor_type)
    wide = np.zeros((len(rows), tensor_bytes([hidden], tensor_type)), np.uint8)
    wide[:, : rows.shape[1]] = rows
    yield wide


def add_widened(output: StreamedGguf, tensor: gguf.ReaderTensor, tensor_type: Type, hidden: int, seed: list[int]) -> None:
    rows, columns = (int(extent) for extent in reversed(tensor.shape))
    if tensor.name.endswith("ffn_down.weight"):
        output.add(tensor.name, (rows, hidden), tensor_type, lambda: with_more_columns(tensor, tensor_type, hidden))
    else:
        output.add(tensor.name, (hidden, columns), tensor_type, lambda: with_more_rows(tensor, tensor_type, hidden, seed))


def widen_dense(source_path: Path, destination: Path, hidden: int, type_name: str, seed: int) -> None:
    source = open_source(source_path)
    architecture = source.get_field("general.architecture").contents()
    hidden_key = f"{architecture}.feed_forward_length"
    if not any(FFN.fullmatch(tensor.name) for tensor in source.tensors) or hidden_key not in source.fields:
        raise SystemExit(f"error: {source_path}: has no feed-forward matrices (blk.N.ffn_gate, ffn_up, ffn_down); is it a MoE?")
    current = source.get_field(hidden_key).contents()
    if hidden < current:
        raise SystemExit(f"error: the source has {current} hidden units already, --ffn {hidden} would narrow them")

    output = StreamedGguf(destination, architecture)
    changed = ["general.size_label", "general.name", hidden_key]
    if TYPES[type_name]:
        changed.append("general.file_type")
        output.metadata.add_file_type(TYPES[type_name][1])
    copy_metadata(source, output.metadata, leave_out=changed)
    name = source.get_field("general.name")
    output.metadata.add_name(f"{name.contents() if name else source_path.stem} widened to {hidden} ({type_name})")
    output.metadata.add_feed_forward_length(hidden)
    for number, tensor in enumerate(source.tensors):
        if not FFN.fullmatch(tensor.name):
            shape = [int(extent) for extent in reversed(tensor.shape)]
            output.add(tensor.name, shape, tensor.tensor_type, lambda tensor=tensor: [tensor.data])
            continue
        tensor_type = TYPES[type_name][0] if TYPES[type_name] else tensor.tensor_type
        block = gguf.GGML_QUANT_SIZES[tensor_type][0]
        if hidden % block:
            raise SystemExit(f"error: --ffn {hidden} is no multiple of {block}, the block of {tensor_type.name}")
        add_widened(output, tensor, tensor_type, hidden, [seed, number])

    output.require_room("choose a smaller --ffn or another disk")
    output.write()
    print(f"{destination}: {destination.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC.gguf", help="a dense model with gate, up and down matrices")
    parser.add_argument("destination", type=Path, metavar="DST.gguf", help="where to write the wide one")
    parser.add_argument("--ffn", type=int, required=True, metavar="N", help="hidden units in the output; a multiple of the type's block")
    parser.add_argument("--type", choices=TYPES, default="q8_0", help="type of the feed-forward matrices in the output (default q8_0)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random rows (default 1)")
    arguments = parser.parse_args()
    widen_dense(arguments.source, arguments.destination, arguments.ffn, arguments.type, arguments.seed)


if __name__ == "__main__":
    main()
