"""Random weights as fast as a disk takes them: a few megabytes of valid random blocks, repeated.

Making tens of gigabytes of random numbers would take minutes; what a bench needs of them is that they compute finite values and that no
two rows of a matrix are equal. The number of blocks in a pool is a prime, so that rows only come round after that many rows.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from gguf_stream import tensor_bytes
from random_blocks import random_tensor

POOL_BLOCKS = 65_537


@cache
def weight_pool(tensor_type: Type, deviation: float) -> np.ndarray:
    """Bytes of `POOL_BLOCKS` blocks whose values have mean zero and this standard deviation."""
    block_elements, _ = gguf.GGML_QUANT_SIZES[tensor_type]
    rng = np.random.default_rng([int(tensor_type), int(1 / deviation)])
    return random_tensor(rng, (POOL_BLOCKS, block_elements), tensor_type, deviation).reshape(-1)


def pooled_weights(shape: Sequence[int], tensor_type: Type, deviation: float, seed: list[int]) -> Iterator[np.ndarray]:
    """Yield the bytes of a matrix, or of one matrix after the other, each beginning at a random block of the pool."""
    pool = weight_pool(tensor_type, deviation)
    block_bytes = gguf.GGML_QUANT_SIZES[tensor_type][1]
    *stacked, rows, columns = shape
    matrix_bytes = tensor_bytes((rows, columns), tensor_type)
    for start in np.random.default_rng(seed).integers(POOL_BLOCKS, size=int(np.prod(stacked))):
        position, left = int(start) * block_bytes, matrix_bytes
        while left:
            chunk = pool[position : position + left]
            yield chunk
            position, left = 0, left - len(chunk)
