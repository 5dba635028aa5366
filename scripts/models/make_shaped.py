#!/usr/bin/env python3
"""Make a model with random weights in the shape of a well-known large one, as a file to measure with: Llama 70B or Mixtral 8x7B in Q4_K_M.

Every matrix has the size, the type and the place in the file that it has in the original (the vocabulary is that of the model given with
`--tokenizer`), so reading and computing cost what they cost there. The text is nonsense, but finite and well spread: each matrix keeps the
scale of its input, every addition to the residual stream is about as large as the embedding, and after N layers the stream has grown
by the square root of N only.

Routers are random directions. As with Mixtral's trained ones all experts are used, none by more than about a quarter of the tokens, and a
token shares 25% to 35% of its experts with the one before it (25% would be chance; `--embedding 1024 --ffn 512` was measured).
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from gguf_stream import StreamedGguf, copy_metadata, open_source
from q4_k_m import layer_type
from weight_pool import pooled_weights

HEAD_VALUES = 128
# Logits spread this widely make a distribution over tokens that is neither flat nor a single peak.
LOGIT_DEVIATION = 3.0
# Random attention looks at all earlier tokens alike and makes neighbours similar, layer after layer: at full strength the last of 32 routers
# gave half of all tokens to one expert.
ATTENTION_SCALE = 0.6


@dataclass(frozen=True)
class Shape:
    """The numbers that decide the sizes of all matrices; `experts` is 0 for a dense model."""

    layers: int
    embedding: int
    ffn: int
    heads: int
    kv_heads: int
    rope_base: float
    experts: int = 0
    used: int = 0


SHAPES = {
    "llama-70b": Shape(layers=80, embedding=8192, ffn=28672, heads=64, kv_heads=8, rope_base=5e5),
    "mixtral-8x7b": Shape(layers=32, embedding=4096, ffn=14336, heads=32, kv_heads=8, rope_base=1e6, experts=8, used=2),
}


def layer_matrices(shape: Shape) -> dict[str, tuple[int, ...]]:
    """A layer's quantised matrices in file order, in numpy order of dimensions: (outputs, inputs), experts before."""
    stacked, suffix = ((shape.experts,), "_exps") if shape.experts else ((), "")
    keys = shape.kv_heads * HEAD_VALUES
    return {
        "attn_q": (shape.heads * HEAD_VALUES, shape.embedding),
        "attn_k": (keys, shape.embedding),
        "attn_v": (keys, shape.embedding),
        "attn_output": (shape.embedding, shape.heads * HEAD_VALUES),
        f"ffn_gate{suffix}": (*stacked, shape.ffn, shape.embedding),
        f"ffn_up{suffix}": (*stacked, shape.ffn, shape.embedding),
        f"ffn_down{suffix}": (*stacked, shape.embedding, shape.ffn),
    }


def router(shape: Shape, seed: list[int]) -> Iterator[np.ndarray]:
    directions = np.random.default_rng(seed).standard_normal((shape.experts, shape.embedding), dtype=np.float32)
    yield directions / np.linalg.norm(directions, axis=1, keepdims=True)


def add_metadata(output: StreamedGguf, tokenizer: gguf.GGUFReader, shape: Shape, name: str) -> None:
    copy_metadata(tokenizer, output.metadata, leave_out=[key for key in tokenizer.fields if not key.startswith("tokenizer.")])
    metadata = output.metadata
    metadata.add_name(f"{name}, {shape.layers} layers of random weights")
    metadata.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    metadata.add_context_length(8192)
    metadata.add_block_count(shape.layers)
    metadata.add_embedding_length(shape.embedding)
    metadata.add_feed_forward_length(shape.ffn)
    metadata.add_head_count(shape.heads)
    metadata.add_head_count_kv(shape.kv_heads)
    metadata.add_rope_dimension_count(HEAD_VALUES)
    metadata.add_rope_freq_base(shape.rope_base)
    metadata.add_layer_norm_rms_eps(1e-5)
    metadata.add_vocab_size(vocabulary_size(tokenizer))
    if shape.experts:
        metadata.add_expert_count(shape.experts)
        metadata.add_expert_used_count(shape.used)


def vocabulary_size(tokenizer: gguf.GGUFReader) -> int:
    return len(tokenizer.fields["tokenizer.ggml.tokens"].data)


def add_tensors(output: StreamedGguf, shape: Shape, vocabulary: int, seed: int) -> None:
    def add_matrix(name: str, dimensions: tuple[int, ...], tensor_type: Type, deviation: float) -> None:
        place = [seed, len(output.tensors)]
        output.add(name, dimensions, tensor_type, lambda: pooled_weights(dimensions, tensor_type, deviation, place))

    def add_norm(name: str) -> None:
        output.add(name, (shape.embedding,), Type.F32, lambda: [np.ones(shape.embedding, np.float32)])

    add_matrix("token_embd.weight", (vocabulary, shape.embedding), Type.Q4_K, 1.0)
    for layer in range(shape.layers):
        add_norm(f"blk.{layer}.attn_norm.weight")
        for part, dimensions in layer_matrices(shape).items():
            if part.startswith("ffn_gate"):
                add_norm(f"blk.{layer}.ffn_norm.weight")
                if shape.experts:
                    place = [seed, len(output.tensors)]
                    router_shape = (shape.experts, shape.embedding)
                    output.add(f"blk.{layer}.ffn_gate_inp.weight", router_shape, Type.F32, lambda place=place: router(shape, place))
            tensor_type = layer_type(part, layer, shape.layers, shape.experts)
            scale = ATTENTION_SCALE if part == "attn_output" else 1.0
            add_matrix(f"blk.{layer}.{part}.weight", dimensions, tensor_type, scale * dimensions[-1] ** -0.5)
    add_norm("output_norm.weight")
    add_matrix("output.weight", (vocabulary, shape.embedding), Type.Q6_K, LOGIT_DEVIATION * shape.embedding**-0.5)


def make_shaped(name: str, shape: Shape, tokenizer_path: Path, destination: Path, seed: int, size_only: bool) -> None:
    tokenizer = open_source(tokenizer_path)
    output = StreamedGguf(destination, "llama")
    add_metadata(output, tokenizer, shape, name)
    add_tensors(output, shape, vocabulary_size(tokenizer), seed)
    if size_only:
        print(output.tensor_bytes())
        return
    output.require_room("choose fewer --layers or another disk")
    output.write()
    print(f"{destination}: {destination.stat().st_size} bytes, {shape.layers} layers", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SHAPES, help="whose shape")
    parser.add_argument("destination", type=Path, metavar="DST.gguf", help="where to write it")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="GGUF", help="a model whose tokenizer is copied")
    for field, meaning in (
        ("layers", "layers"),
        ("embedding", "width of the residual stream"),
        ("ffn", "hidden units of a feed-forward network, or of one expert"),
        ("heads", f"attention heads, of {HEAD_VALUES} values each"),
        ("kv_heads", "heads of keys and values"),
    ):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, metavar="N", help=f"{meaning} (default: those of the shape)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the weights (default 1)")
    parser.add_argument("--size", action="store_true", help="print the bytes of the tensors and write nothing")
    arguments = parser.parse_args()
    given = {field: getattr(arguments, field) for field in ("layers", "embedding", "ffn", "heads", "kv_heads")}
    given = {field: number for field, number in given.items() if number is not None}
    if any(number < 1 for number in given.values()):
        parser.error("numbers of a shape are 1 or more")
    shape = replace(SHAPES[arguments.name], **given)
    for length, what in ((shape.embedding, "--embedding"), (shape.ffn, "--ffn")):
        if length % gguf.GGML_QUANT_SIZES[Type.Q4_K][0]:
            parser.error(f"{what} {length} is no multiple of {gguf.GGML_QUANT_SIZES[Type.Q4_K][0]}, the block of Q4_K")
    if shape.heads % shape.kv_heads or shape.heads % 2:
        parser.error("--heads is even and a multiple of --kv-heads")
    make_shaped(arguments.name, shape, arguments.tokenizer, arguments.destination, arguments.seed, arguments.size)


if __name__ == "__main__":
    main()
