#!/usr/bin/env python3
"""Make tiny GGUF models with random weights, one for each shape that weight streaming has to handle.

They are for comparing outputs bit by bit, not for reading: every one loads and runs in stock llama.cpp and produces finite logits. The
same name and seed always give the same bytes.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type

import tiny_vocab
from gguf_stream import StreamedGguf
from parameters import add_parameters
from random_blocks import random_tensor
from tiny_layers import Tensor, TinyModel
from tiny_shapes import SHAPES


def tensor_content(model_name: str, tensor: Tensor, seed: int) -> np.ndarray:
    """The bytes of one tensor. Each has its own random stream, so a tensor does not depend on which others were made before it."""
    rng = np.random.default_rng([seed, zlib.crc32(model_name.encode()), zlib.crc32(tensor.name.encode())])
    deviation = tensor.shape[-1] ** -0.5 if tensor.deviation is None else tensor.deviation
    if tensor.name == "output.weight":
        values = rng.standard_normal(tensor.shape, dtype=np.float32) * np.float32(deviation)
        # A row of zeros is a logit of zero, which the best of many random logits always beats: greedy text is then readable and never ends early.
        values[[token for token in range(tensor.shape[0]) if not tiny_vocab.is_printable(token)]] = 0.0
        return values.astype(np.float16)
    if tensor.tensor_type == Type.I32:
        return rng.permuted(np.tile(np.arange(tensor.below, dtype=np.int32), (tensor.shape[0], 1)), axis=1)[:, : tensor.shape[1]]
    if tensor.mean:
        return (tensor.mean + rng.standard_normal(tensor.shape, dtype=np.float32) * deviation).astype(np.float32)
    return random_tensor(rng, tensor.shape, tensor.tensor_type, deviation)


def write_model(name: str, model: TinyModel, path: Path, seed: int) -> list[Path]:
    output = StreamedGguf(path, model.architecture, file_count=model.file_count)
    writer = output.metadata
    writer.add_name(f"tiny-{name}")
    writer.add_description("random weights, for tests of weight streaming only")
    if model.alignment:
        writer.add_custom_alignment(model.alignment)
    add_parameters(writer, model.architecture, model.parameters)
    tiny_vocab.add_vocabulary(writer)
    writer.add_quantization_version(2)
    for tensor in model.tensors:
        output.add(tensor.name, tensor.shape, tensor.tensor_type, lambda tensor=tensor: [tensor_content(name, tensor, seed)])
    return output.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path, nargs="?", metavar="OUTDIR", help="where NAME.gguf is written (split3: three files)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which models; all if none is named")
    parser.add_argument("--list", action="store_true", help="print the names and what each model is, and make nothing")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other weights of the same shapes (default 1)")
    arguments = parser.parse_args()

    if arguments.list:
        for name, make_shape in SHAPES.items():
            print(f"{name:14} {make_shape.__doc__.splitlines()[0]}")
        return
    if arguments.outdir is None:
        parser.error("OUTDIR is missing: name the directory to write to, or use --list")
    unknown = [name for name in arguments.names if name not in SHAPES]
    if unknown:
        parser.error(f"no model named {', '.join(unknown)}; the names are: {', '.join(SHAPES)}")

    for name in arguments.names or SHAPES:
        for path in write_model(name, SHAPES[name](), arguments.outdir / f"{name}.gguf", arguments.seed):
            print(f"{path.stat().st_size:9} {path}")


if __name__ == "__main__":
    main()
