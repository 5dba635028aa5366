#!/usr/bin/env python3
"""Widen the experts of a trained MoE so that the file grows to any size while the model still computes the same function.

Each expert gets more hidden units. The extra rows of its gate and up matrices are rows of the same layer's experts drawn at random; the
extra columns of its down matrix are zero, so whatever the extra units compute is multiplied by zero. Zero is exact in every type. Routing
and text stay those of the model: a small trained MoE, with its real locality, becomes as large as a bench needs.

With `--type same` the original values keep their bytes and outputs stay bit-identical. Any other type re-encodes them: Q3_K decoded and
stored as Q8_0 changes a value by up to about 1/254 of the largest in its block of 32, so texts may part ways after a while.

Everything is written in sequence, one expert at a time; memory use does not grow with the size of the output.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType

from gguf_stream import StreamedGguf, copy_metadata, open_source, tensor_bytes

# The types that gguf can encode, and how a file is called that consists mostly of them. "same" keeps the source's.
TYPES = {
    "same": None,
    "q4_0": (Type.Q4_0, FileType.MOSTLY_Q4_0),
    "q4_1": (Type.Q4_1, FileType.MOSTLY_Q4_1),
    "q5_0": (Type.Q5_0, FileType.MOSTLY_Q5_0),
    "q5_1": (Type.Q5_1, FileType.MOSTLY_Q5_1),
    "q8_0": (Type.Q8_0, FileType.MOSTLY_Q8_0),
    "f16": (Type.F16, FileType.MOSTLY_F16),
    "bf16": (Type.BF16, FileType.MOSTLY_BF16),
}


def encoded_rows(tensor: gguf.ReaderTensor, tensor_type: Type) -> np.ndarray:
    """The tensor in this type, as bytes of shape (experts, rows, bytes of a row)."""
    if tensor_type == tensor.tensor_type:
        return tensor.data.view(np.uint8)
    return gguf.quantize(gguf.dequantize(tensor.data, tensor.tensor_type), tensor_type).view(np.uint8)


def with_more_rows(tensor: gguf.ReaderTensor, tensor_type: Type, hidden: int, seed: list[int]) -> Iterator[np.ndarray]:
    """Gate and up: yield each expert's own rows, then rows of the whole layer drawn at random."""
    rows = encoded_rows(tensor, tensor_type)
    pool = rows.reshape(-1, rows.shape[-1])
    rng = np.random.default_rng(seed)
    for own in rows:
        yield own
        yield pool[rng.integers(0, len(pool), hidden - len(own))]


def with_more_columns(tensor: gguf.ReaderTensor, tensor_type: Type, hidden: int) -> Iterator[np.ndarray]:
    """Down: yield each expert's rows, every one continued with zero blocks (a block of zero bytes decodes to zeros in every type)."""
    for own in encoded_rows(tensor, tensor_type):
        wide = np.zeros((own.shape[0], tensor_bytes([hidden], tensor_type)), dtype=np.uint8)
        wide[:, : own.shape[1]] = own
        yield wide


def widen_moe(source_path: Path, destination: Path, hidden: int, type_name: str, seed: int) -> None:
    source = open_source(source_path)
    architecture = source.get_field("general.architecture").contents()
    tensors = {tensor.name: tensor for tensor in source.tensors}
    unusable = [name for name in tensors if "_exps." in name and not name.endswith(("gate_exps.weight", "up_exps.weight", "down_exps.weight"))]
    unusable += [name for name in tensors if name.endswith("ffn_gate_up_exps.weight")]
    if unusable:
        raise SystemExit(f"error: {source_path}: has {unusable[0]}; only experts of plain gate, up and down matrices can be widened")
    down = [tensor for name, tensor in tensors.items() if name.endswith(".ffn_down_exps.weight")]
    if not down:
        raise SystemExit(f"error: {source_path}: has no expert tensors (ffn_down_exps); is it a MoE?")
    current = int(down[0].shape[0])
    if hidden < current:
        raise SystemExit(f"error: experts have {current} hidden units already, --ffn {hidden} would narrow them")

    output = StreamedGguf(destination, architecture)
    hidden_key = f"{architecture}.expert_feed_forward_length"
    if hidden_key not in source.fields:
        hidden_key = f"{architecture}.feed_forward_length"
    changed = ["general.size_label", "general.name", hidden_key]
    if TYPES[type_name]:
        changed.append("general.file_type")
        output.metadata.add_file_type(TYPES[type_name][1])
    copy_metadata(source, output.metadata, leave_out=changed)
    name = source.get_field("general.name")
    output.metadata.add_name(f"{name.contents() if name else source_path.stem} widened to {hidden} ({type_name})")
    output.metadata.add_uint32(hidden_key, hidden)
    alignment = source.get_field("general.alignment")
    if alignment is not None:
        output.metadata.data_alignment = alignment.contents()

    for number, tensor in enumerate(source.tensors):
        shape = [int(extent) for extent in reversed(tensor.shape)]
        if "_exps." not in tensor.name:
            output.add(tensor.name, shape, tensor.tensor_type, lambda tensor=tensor: [tensor.data])
            continue
        type_ = TYPES[type_name][0] if TYPES[type_name] else tensor.tensor_type
        if tensor.name.endswith("down_exps.weight"):
            block = gguf.GGML_QUANT_SIZES[type_][0]
            if hidden % block:
                raise SystemExit(f"error: --ffn {hidden} is no multiple of {block}, the block of {type_.name}; try {hidden // block * block + block}")
            output.add(
                tensor.name, [*shape[:2], hidden], type_, lambda tensor=tensor, type_=type_: with_more_columns(tensor, type_, hidden)
            )
        else:
            output.add(
                tensor.name,
                [shape[0], hidden, shape[2]],
                type_,
                lambda tensor=tensor, type_=type_, number=number: with_more_rows(tensor, type_, hidden, [seed, number]),
            )

    output.require_room("choose a smaller --ffn or another disk")
    output.write()
    experts, used = (source.get_field(f"{architecture}.expert_{key}").contents() for key in ("count", "used_count"))
    expert_bytes = sum(tensor_bytes(t.shape, t.tensor_type) for t in output.tensors if "_exps." in t.name) // (experts * len(down))
    print(f"{destination}: {destination.stat().st_size} bytes")
    print(f"{experts} experts in each of {len(down)} layers, {expert_bytes} bytes an expert; a token uses {used * len(down) * expert_bytes} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC.gguf", help="a MoE with plain gate, up and down experts")
    parser.add_argument("destination", type=Path, metavar="DST.gguf", help="where to write the wide one")
    parser.add_argument("--ffn", type=int, required=True, metavar="N", help="hidden units of an expert in the output; a multiple of the type's block")
    parser.add_argument("--type", choices=TYPES, default="q8_0", help="type of the expert matrices in the output (default q8_0)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random rows (default 1)")
    arguments = parser.parse_args()
    widen_moe(arguments.source, arguments.destination, arguments.ffn, arguments.type, arguments.seed)


if __name__ == "__main__":
    main()
