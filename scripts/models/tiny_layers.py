"""What tiny models are built from: lists of tensors for an attention block, a dense FFN, an expert FFN.

Shapes are in numpy order: the row, which ggml calls ne[0], comes last. No function here knows a whole model; see tiny_shapes.py.
"""

from dataclasses import dataclass, field
from typing import Any

from gguf import GGMLQuantizationType as Type


@dataclass(frozen=True)
class Tensor:
    """A tensor with random normal content. Without a deviation it gets that of a matrix which keeps its input's magnitude.

    Integers (I32) are instead, in each row, different numbers from 0 to one less than `below`.
    """

    name: str
    shape: tuple[int, ...]
    tensor_type: Type = Type.F32
    mean: float = 0.0
    deviation: float | None = None
    below: int | None = None


@dataclass
class TinyModel:
    """Everything that decides the file: `parameters` are the keys below the architecture's name, `tensors` are in file order."""

    architecture: str
    parameters: dict[str, Any]
    tensors: list[Tensor]
    alignment: int | None = None
    file_count: int = 1


@dataclass(frozen=True)
class Width:
    """The sizes that all layers of a model share."""

    embedding: int
    heads: int
    kv_heads: int
    head: int
    matrix_type: Type = field(default=Type.Q8_0)  # of attention and other always-resident matrices


def norm(name: str, size: int) -> Tensor:
    return Tensor(name, (size,), mean=1.0, deviation=0.1)


def bias(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, deviation=0.1)


def embeddings(width: Width, vocabulary: int) -> list[Tensor]:
    return [
        Tensor("token_embd.weight", (vocabulary, width.embedding), Type.F16, deviation=1.0),
        norm("output_norm.weight", width.embedding),
        Tensor("output.weight", (vocabulary, width.embedding), Type.F16),
    ]


def attention(layer: str, width: Width, query_key_norms: bool = False, biases: bool = False) -> list[Tensor]:
    """Multi-head attention with grouped keys and values."""
    query, key_value = width.heads * width.head, width.kv_heads * width.head
    tensors = [norm(f"{layer}.attn_norm.weight", width.embedding)]
    for name, rows in (("q", query), ("k", key_value), ("v", key_value)):
        tensors.append(Tensor(f"{layer}.attn_{name}.weight", (rows, width.embedding), width.matrix_type))
        if biases:
            tensors.append(bias(f"{layer}.attn_{name}.bias", rows))
    tensors.append(Tensor(f"{layer}.attn_output.weight", (width.embedding, query), width.matrix_type))
    if biases:
        tensors.append(bias(f"{layer}.attn_output.bias", width.embedding))
    if query_key_norms:
        tensors += [norm(f"{layer}.attn_q_norm.weight", width.head), norm(f"{layer}.attn_k_norm.weight", width.head)]
    return tensors


def latent_attention(layer: str, width: Width, query_rank: int, kv_rank: int, plain: int, rotated: int, value: int) -> list[Tensor]:
    """DeepSeek's multi-head latent attention: a key head has `plain` + `rotated` values, a value head `value`."""
    type_ = width.matrix_type
    return [
        norm(f"{layer}.attn_norm.weight", width.embedding),
        Tensor(f"{layer}.attn_q_a.weight", (query_rank, width.embedding), type_),
        norm(f"{layer}.attn_q_a_norm.weight", query_rank),
        Tensor(f"{layer}.attn_q_b.weight", (width.heads * (plain + rotated), query_rank), type_),
        Tensor(f"{layer}.attn_kv_a_mqa.weight", (kv_rank + rotated, width.embedding), type_),
        norm(f"{layer}.attn_kv_a_norm.weight", kv_rank),
        Tensor(f"{layer}.attn_k_b.weight", (width.heads, kv_rank, plain), type_),
        Tensor(f"{layer}.attn_v_b.weight", (width.heads, value, kv_rank), type_),
        Tensor(f"{layer}.attn_output.weight", (width.embedding, width.heads * value), type_),
    ]


def dense_ffn(layer: str, width: Width, hidden: int, types: tuple[Type, Type, Type], suffix: str = "") -> list[Tensor]:
    """A gated FFN; `types` are those of gate, up and down. The suffix `_shexp` makes it a shared expert."""
    gate, up, down = types
    return [
        Tensor(f"{layer}.ffn_gate{suffix}.weight", (hidden, width.embedding), gate),
        Tensor(f"{layer}.ffn_up{suffix}.weight", (hidden, width.embedding), up),
        Tensor(f"{layer}.ffn_down{suffix}.weight", (width.embedding, hidden), down),
    ]


def router(layer: str, width: Width, experts: int) -> Tensor:
    # twice the usual deviation: the logits of a token then differ by more than one, and its experts get unequal weights
    return Tensor(f"{layer}.ffn_gate_inp.weight", (experts, width.embedding), deviation=2.0 / width.embedding**0.5)


def expert_ffn(layer: str, width: Width, experts: int, hidden: int, types: tuple[Type, Type, Type]) -> list[Tensor]:
    """The stacked gate, up and down matrices of all experts of a layer."""
    gate, up, down = types
    return [
        Tensor(f"{layer}.ffn_gate_exps.weight", (experts, hidden, width.embedding), gate),
        Tensor(f"{layer}.ffn_up_exps.weight", (experts, hidden, width.embedding), up),
        Tensor(f"{layer}.ffn_down_exps.weight", (experts, width.embedding, hidden), down),
    ]


def fused_expert_ffn(layer: str, width: Width, experts: int, hidden: int, type_: Type) -> list[Tensor]:
    """The same with gate and up in one tensor: of each expert's rows the first half is gate, the second half up."""
    return [
        Tensor(f"{layer}.ffn_gate_up_exps.weight", (experts, 2 * hidden, width.embedding), type_),
        Tensor(f"{layer}.ffn_down_exps.weight", (experts, width.embedding, hidden), type_),
    ]


def expert_biases(layer: str, width: Width, experts: int, hidden: int) -> list[Tensor]:
    return [
        bias(f"{layer}.ffn_gate_inp.bias", experts),
        bias(f"{layer}.ffn_gate_exps.bias", experts, hidden),
        bias(f"{layer}.ffn_up_exps.bias", experts, hidden),
        bias(f"{layer}.ffn_down_exps.bias", experts, width.embedding),
    ]
