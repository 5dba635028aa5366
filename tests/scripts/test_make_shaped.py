"""Models of a well-known shape, made small: the right types, the right sizes, weights of the right scale, no equal rows."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from gguf_stream import StreamedGguf
from make_shaped import SHAPES, add_tensors
from q4_k_m import uses_more_bits
from random_blocks import random_tensor
from weight_pool import pooled_weights


def make(name: str, path: Path, **numbers: int) -> dict[str, gguf.ReaderTensor]:
    output = StreamedGguf(path, "llama")
    add_tensors(output, replace(SHAPES[name], **numbers), vocabulary=64, seed=1)
    output.write()
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> dict[str, gguf.ReaderTensor]:
    path = tmp_path_factory.mktemp("models") / "dense.gguf"
    return make("llama-70b", path, layers=8, embedding=256, ffn=512, heads=2, kv_heads=1)


def test_a_dense_model_is_quantised_like_q4_k_m(dense) -> None:
    more_bits = [layer for layer in range(8) if dense[f"blk.{layer}.ffn_down.weight"].tensor_type == Type.Q6_K]
    assert more_bits == [0, 3, 6, 7] == [layer for layer in range(8) if uses_more_bits(layer, 8)]
    assert dense["blk.1.attn_v.weight"].tensor_type == Type.Q5_K and dense["blk.0.attn_v.weight"].tensor_type == Type.Q6_K
    assert dense["blk.1.ffn_up.weight"].tensor_type == Type.Q4_K
    assert dense["output.weight"].tensor_type == Type.Q6_K and dense["token_embd.weight"].tensor_type == Type.Q4_K


def test_a_mixture_has_experts_and_routers(tmp_path) -> None:
    tensors = make("mixtral-8x7b", tmp_path / "moe.gguf", layers=1, embedding=256, ffn=512, heads=2, kv_heads=1)
    assert list(tensors["blk.0.ffn_down_exps.weight"].shape) == [512, 256, 8]
    assert list(tensors["blk.0.ffn_gate_inp.weight"].shape) == [256, 8]
    assert tensors["blk.0.attn_k.weight"].tensor_type == Type.Q8_0
    experts = tensors["blk.0.ffn_up_exps.weight"].data
    assert len({expert.tobytes() for expert in experts}) == 8


def test_outputs_keep_the_scale_of_inputs(dense) -> None:
    for name in ("blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "blk.1.attn_v.weight"):
        tensor = dense[name]
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(weights).all()
        assert np.std(weights) * np.sqrt(weights.shape[1]) == pytest.approx(1, rel=0.05), name
        assert abs(np.mean(weights)) < 0.05 * np.std(weights)
        assert len({row.tobytes() for row in tensor.data}) == len(tensor.data)


@pytest.mark.parametrize("tensor_type", [Type.Q4_K, Type.Q5_K, Type.Q6_K])
def test_random_blocks_decode_to_the_wanted_deviation(tensor_type) -> None:
    encoded = random_tensor(np.random.default_rng(1), (4096, 256), tensor_type, 0.02)
    values = gguf.dequantize(encoded, tensor_type)
    assert np.std(values) == pytest.approx(0.02, rel=0.05)


def test_a_matrix_longer_than_the_pool_is_whole() -> None:
    chunks = list(pooled_weights((2, 65_600, 256), Type.Q4_K, 1.0, [1]))
    assert sum(map(len, chunks)) == 2 * 65_600 * 144
