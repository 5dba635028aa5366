"""Random weights in any of the ggml types that the made models use.

`gguf.quants` can quantise to some types only. For the others (Q4_K, Q5_K, Q6_K, IQ4_XS) and for MXFP4, valid blocks are made directly: random
quants and random sub-block scales, and a block scale chosen so that the decoded values have mean zero and the wanted standard
deviation, which keeps activations finite. Block layouts are those of llama.cpp's ggml-common.h.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

BLOCK_MAKERS = {}


def makes_blocks_of(tensor_type):
    """Register a function (rng, block_count, deviation) -> bytes[block_count, block_bytes] for a type."""

    def register(function):
        BLOCK_MAKERS[tensor_type] = function
        return function

    return register


def random_tensor(rng: np.random.Generator, shape: tuple[int, ...], tensor_type: Type, deviation: float) -> np.ndarray:
    """Random values around zero with this standard deviation, encoded; returns the bytes of the tensor as uint8."""
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type]
    if shape[-1] % block_elements:
        raise ValueError(f"rows of {shape[-1]} values do not divide into {tensor_type.name} blocks of {block_elements}")
    if tensor_type in BLOCK_MAKERS:
        block_count = int(np.prod(shape)) // block_elements
        blocks = BLOCK_MAKERS[tensor_type](rng, block_count, deviation)
        assert blocks.shape == (block_count, block_bytes) and blocks.dtype == np.uint8
        return blocks
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
    return gguf.quantize(values, tensor_type).view(np.uint8)


def _random_bytes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _block_scales(rng: np.random.Generator, block_count: int, typical: float) -> np.ndarray:
    """One positive half-precision scale a block, spread by a quarter around the typical one, so that blocks differ in size."""
    return (typical * rng.uniform(0.75, 1.25, (block_count, 1))).astype(np.float16)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))


def _scales_and_minima(rng, block_count, deviation, quant_count):
    """The head of a Q4_K or Q5_K block: value = d * scale * quant - dmin * minimum, eight scales and minima of 6 bits.

    With minimum = scale and dmin = d * (the middle of the quants) the values have mean zero.
    """
    quants = np.arange(quant_count)
    scales = rng.integers(16, 64, (block_count, 8), dtype=np.uint8)
    typical = deviation / (_root_mean_square(np.arange(16, 64)) * _root_mean_square(quants - quants.mean()))
    d = _block_scales(rng, block_count, typical)
    dmin = (d.astype(np.float32) * np.float32(quants.mean())).astype(np.float16)
    low, high = scales[:, :4], scales[:, 4:]
    first = low | (high >> 4 << 6)  # 6 bits of scales 0-3, and the upper 2 bits of scales 4-7; the same again for the minima
    third = (high & 15) | (high << 4)  # the lower 4 bits of scales 4-7 and of minima 4-7
    return np.hstack([d.view(np.uint8), dmin.view(np.uint8), first, first, third])


@makes_blocks_of(Type.Q4_K)
def _q4_k(rng, block_count, deviation):
    head = _scales_and_minima(rng, block_count, deviation, 16)
    return np.hstack([head, _random_bytes(rng, block_count, 128)])


@makes_blocks_of(Type.Q5_K)
def _q5_k(rng, block_count, deviation):
    head = _scales_and_minima(rng, block_count, deviation, 32)
    return np.hstack([head, _random_bytes(rng, block_count, 32 + 128)])


@makes_blocks_of(Type.Q6_K)
def _q6_k(rng, block_count, deviation):
    # value = d * scale * (quant - 32), scale is a signed byte for each 16 values
    magnitudes = rng.integers(32, 128, (block_count, 16), dtype=np.int8)
    scales = magnitudes * rng.choice(np.array([-1, 1], dtype=np.int8), (block_count, 16))
    typical = deviation / (_root_mean_square(np.arange(32, 128)) * _root_mean_square(np.arange(64) - 32))
    d = _block_scales(rng, block_count, typical)
    quants = _random_bytes(rng, block_count, 128 + 64)
    return np.hstack([quants, scales.view(np.uint8), d.view(np.uint8)])


@makes_blocks_of(Type.IQ4_XS)
def _iq4_xs(rng, block_count, deviation):
    # value = d * (scale - 32) * table[quant], 6-bit scales
    table = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    typical = deviation / (_root_mean_square(np.arange(64) - 32) * _root_mean_square(table))
    d = _block_scales(rng, block_count, typical)
    return np.hstack([d.view(np.uint8), _random_bytes(rng, block_count, 2 + 4 + 128)])


@makes_blocks_of(Type.MXFP4)
def _mxfp4(rng, block_count, deviation):
    # value = table[quant] * 2**(exponent - 128); the table holds doubled E2M1 values
    table = np.array([0, 1, 2, 3, 4, 6, 8, 12])
    typical = 128 + round(np.log2(deviation / _root_mean_square(table)))
    exponents = rng.integers(typical - 1, typical + 2, (block_count, 1)).astype(np.uint8)
    return np.hstack([exponents, _random_bytes(rng, block_count, 16)])
