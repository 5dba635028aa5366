#!/usr/bin/env python3
"""Make a projector that lets a text model see colours: a picture becomes the words "red", "green" and "blue" as the model embeds them.

It has the form of Phi-4's, which puts nothing around a picture: a vision transformer of one layer that adds nothing, so that its
output is the average colour of each patch, and two matrices that turn this into the embeddings of words. What a picture does to an
answer can then be foreseen.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np

PATCH, SIDE, WIDTH = 16, 32, 32
COLOURS = ("red", "green", "blue")


def embedding_of(reader: gguf.GGUFReader, word: str) -> np.ndarray:
    """The row of the model's table that stands for a word after a space."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    table = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    row = table.data[tokens.index("Ġ" + word)]
    return gguf.quants.dequantize(row, table.tensor_type).astype(np.float32)


def patch_averages() -> np.ndarray:
    """The convolution over a patch, whose first three outputs are the averages of red, green and blue."""
    weights = np.zeros((WIDTH, 3, PATCH, PATCH), np.float32)
    for colour in range(3):
        weights[colour, colour] = 1 / PATCH**2
    return weights


def words_of_colours(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    """From averages to embeddings. Between the matrices is a GELU, which leaves 0 and what is well above 1 as they are."""
    far = np.float32(8)
    words = np.stack([embedding_of(reader, word) for word in COLOURS], axis=1)
    second = np.zeros((words.shape[0], WIDTH), np.float32)
    second[:, :3] = words / far
    return {
        "mm.0.weight": far * np.eye(WIDTH, dtype=np.float32),
        "mm.0.bias": np.zeros(WIDTH, np.float32),
        "mm.2.weight": second,
        "mm.2.bias": np.zeros(words.shape[0], np.float32),
    }


def layer() -> dict[str, np.ndarray]:
    """A block that adds nothing to what passes it: what it would add is multiplied by zero."""
    weights = {f"v.blk.0.attn_{name}.weight": np.zeros((WIDTH, WIDTH), np.float32) for name in ("q", "k", "v", "out")}
    for norm in ("ln1", "ln2"):
        weights |= {f"v.blk.0.{norm}.weight": np.ones(WIDTH, np.float32), f"v.blk.0.{norm}.bias": np.zeros(WIDTH, np.float32)}
    up, down = np.zeros((2 * WIDTH, WIDTH), np.float32), np.zeros((WIDTH, 2 * WIDTH), np.float32)
    return weights | {"v.blk.0.ffn_up.weight": up, "v.blk.0.ffn_down.weight": down}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the text model whose words are taken; its vocabulary marks spaces as GPT-2's does")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()

    reader = gguf.GGUFReader(arguments.model)
    writer = gguf.GGUFWriter(arguments.output, "clip")
    writer.add_type("mmproj")
    writer.add_name("sees colours")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "phi4")
    writer.add_bool("clip.use_gelu", True)
    to_words = words_of_colours(reader)
    sizes = {"image_size": SIDE, "image_min_pixels": SIDE**2, "image_max_pixels": SIDE**2, "patch_size": PATCH, "block_count": 1}
    sizes |= {"embedding_length": WIDTH, "feed_forward_length": 2 * WIDTH, "attention.head_count": 2}
    for key, size in (sizes | {"projection_dim": to_words["mm.2.bias"].size}).items():
        writer.add_uint32(f"clip.vision.{key}", size)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.0, 0.0, 0.0])
    writer.add_array("clip.vision.image_std", [1.0, 1.0, 1.0])
    positions = np.zeros(((SIDE // PATCH) ** 2, WIDTH), np.float32)
    tensors = {"v.patch_embd.weight": patch_averages(), "v.position_embd.weight": positions}
    for name, values in (tensors | layer() | to_words).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
