"""The tiny models, one function each: which real family a model stands for, and what of it can go wrong when weights are streamed.

The docstring's first line is what `tiny_models.py --list` prints.
"""

from dataclasses import replace

from gguf import ExpertGatingFuncType
from gguf import GGMLQuantizationType as Type

from tiny_layers import (
    Tensor,
    TinyModel,
    Width,
    attention,
    bias,
    dense_ffn,
    embeddings,
    expert_biases,
    expert_ffn,
    fused_expert_ffn,
    latent_attention,
    norm,
    router,
)
from tiny_vocab import TOKENS

SHAPES = {}
VOCABULARY = len(TOKENS)


def shape(name):
    """Register a function that returns a TinyModel under a name."""

    def register(function):
        SHAPES[name] = function
        return function

    return register


def common_parameters(width: Width, layers: int, hidden: int) -> dict:
    """The keys that every architecture here reads."""
    return {
        "block_count": layers,
        "context_length": 2048,
        "embedding_length": width.embedding,
        "feed_forward_length": hidden,
        "attention.head_count": width.heads,
        "attention.head_count_kv": width.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": width.head,
        "rope.freq_base": 10000.0,
    }


def llama_moe(width: Width, experts: int, used: int, hidden: int, types_by_layer: list[tuple[Type, Type, Type]]) -> TinyModel:
    """Mixtral's shape: architecture `llama`, every FFN an expert FFN; one (gate, up, down) triple of types for each layer."""
    tensors = embeddings(width, VOCABULARY)
    for index, types in enumerate(types_by_layer):
        layer = f"blk.{index}"
        tensors += attention(layer, width)
        tensors += [norm(f"{layer}.ffn_norm.weight", width.embedding), router(layer, width, experts)]
        tensors += expert_ffn(layer, width, experts, hidden, types)
    parameters = common_parameters(width, len(types_by_layer), hidden) | {"expert_count": experts, "expert_used_count": used}
    return TinyModel("llama", parameters, tensors)


def qwen3_moe(width: Width, experts: int, used: int, hidden: int, layers: int, type_: Type) -> TinyModel:
    """Qwen3's shape: many small experts, norms on queries and keys."""
    tensors = embeddings(width, VOCABULARY)
    for index in range(layers):
        layer = f"blk.{index}"
        tensors += attention(layer, width, query_key_norms=True)
        tensors += [norm(f"{layer}.ffn_norm.weight", width.embedding), router(layer, width, experts)]
        tensors += expert_ffn(layer, width, experts, hidden, (type_,) * 3)
    parameters = common_parameters(width, layers, hidden * used) | {
        "attention.key_length": width.head,
        "attention.value_length": width.head,
        "expert_count": experts,
        "expert_used_count": used,
        "expert_feed_forward_length": hidden,
    }
    return TinyModel("qwen3moe", parameters, tensors)


def deepseek_moe(experts: int, used: int, hidden: int, dense_layers: int, layers: int, type_: Type, fused: bool) -> TinyModel:
    """DeepSeek's shape: latent attention, the first layers dense, then routed experts beside one shared expert."""
    width = Width(embedding=256, heads=4, kv_heads=1, head=32)
    latent = {"query_rank": 96, "kv_rank": 64, "plain": 32, "rotated": 32, "value": 32}
    dense_hidden = 512
    tensors = embeddings(width, VOCABULARY)
    for index in range(layers):
        layer = f"blk.{index}"
        tensors += latent_attention(layer, width, **latent)
        tensors.append(norm(f"{layer}.ffn_norm.weight", width.embedding))
        if index < dense_layers:
            tensors += dense_ffn(layer, width, dense_hidden, (type_,) * 3)
            continue
        tensors.append(router(layer, width, experts))
        if fused:
            tensors += fused_expert_ffn(layer, width, experts, hidden, type_)
        else:
            tensors += expert_ffn(layer, width, experts, hidden, (type_,) * 3)
        tensors += dense_ffn(layer, width, hidden, (Type.Q8_0,) * 3, suffix="_shexp")
    parameters = common_parameters(width, layers, dense_hidden) | {
        "leading_dense_block_count": dense_layers,
        "attention.q_lora_rank": latent["query_rank"],
        "attention.kv_lora_rank": latent["kv_rank"],
        "attention.key_length": latent["kv_rank"] + latent["rotated"],
        "attention.value_length": latent["kv_rank"],
        "attention.key_length_mla": latent["plain"] + latent["rotated"],
        "attention.value_length_mla": latent["value"],
        "rope.dimension_count": latent["rotated"],
        "expert_count": experts,
        "expert_used_count": used,
        "expert_shared_count": 1,
        "expert_feed_forward_length": hidden,
    }
    return TinyModel("deepseek2", parameters, tensors)


@shape("mixtral")
def mixtral():
    """llama with 8 experts, 2 used; Q4_0; an expert matrix is 13.5 pages of 4096 bytes"""
    width = Width(embedding=256, heads=4, kv_heads=2, head=64)
    return llama_moe(width, experts=8, used=2, hidden=384, types_by_layer=[(Type.Q4_0,) * 3] * 3)


@shape("qwen3moe")
def qwen3moe():
    """qwen3moe with 128 experts, 8 used; Q4_0; expert matrices near one page"""
    width = Width(embedding=128, heads=4, kv_heads=2, head=32)
    return qwen3_moe(width, experts=128, used=8, hidden=64, layers=3, type_=Type.Q4_0)


@shape("many-experts")
def many_experts():
    """qwen3moe with 512 experts, 10 used; Q4_0; expert matrices smaller than a page"""
    width = Width(embedding=64, heads=2, kv_heads=1, head=32)
    return qwen3_moe(width, experts=512, used=10, hidden=32, layers=3, type_=Type.Q4_0)


@shape("deepseek2")
def deepseek2():
    """deepseek2 with latent attention, 2 dense layers, 32 experts in 4 groups, 4 used, sigmoid router with bias, shared expert"""
    experts = 32
    model = deepseek_moe(experts=experts, used=4, hidden=64, dense_layers=2, layers=5, type_=Type.Q8_0, fused=False)
    model.parameters |= {
        "expert_gating_func": int(ExpertGatingFuncType.SIGMOID),
        "expert_group_count": 4,
        "expert_group_used_count": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": 2.5,
    }
    for index in range(2, 5):
        position = next(i for i, tensor in enumerate(model.tensors) if tensor.name == f"blk.{index}.ffn_gate_inp.weight")
        model.tensors.insert(position + 1, bias(f"blk.{index}.exp_probs_b.bias", experts))
    return model


@shape("drafting")
def drafting():
    """deepseek2 with one more layer, which drafts tokens (MTP) and is not loaded; 3 layers of 16 experts, 2 used; Q8_0"""
    layers = 3
    model = deepseek_moe(experts=16, used=2, hidden=64, dense_layers=0, layers=layers + 1, type_=Type.Q8_0, fused=False)
    model.parameters |= {"expert_gating_func": int(ExpertGatingFuncType.SOFTMAX), "nextn_predict_layers": 1}
    width = model.parameters["embedding_length"]
    prefix = f"blk.{layers}.nextn"
    model.tensors.append(Tensor(f"{prefix}.eh_proj.weight", (width, 2 * width), Type.Q8_0))
    model.tensors += [norm(f"{prefix}.{part}.weight", width) for part in ("enorm", "hnorm")]
    return model


@shape("looped")
def looped():
    """nanbeige: a dense model whose 3 layers are gone through twice for a token; Q8_0"""
    width = Width(embedding=256, heads=4, kv_heads=2, head=64, matrix_type=Type.Q8_0)
    layers, hidden = 3, 512
    tensors = embeddings(width, VOCABULARY)
    for index in range(layers):
        layer = f"blk.{index}"
        tensors += attention(layer, width)
        tensors.append(norm(f"{layer}.ffn_norm.weight", width.embedding))
        tensors += dense_ffn(layer, width, hidden, (Type.Q8_0,) * 3)
    return TinyModel("nanbeige", common_parameters(width, layers, hidden) | {"num_loops": 2}, tensors)


@shape("fused-gate-up")
def fused_gate_up():
    """deepseek2 with gate and up in one ffn_gate_up_exps tensor, 16 experts, 4 used, softmax router; Q4_0"""
    model = deepseek_moe(experts=16, used=4, hidden=96, dense_layers=1, layers=4, type_=Type.Q4_0, fused=True)
    model.parameters |= {"expert_gating_func": int(ExpertGatingFuncType.SOFTMAX), "expert_weights_norm": False}
    return model


@shape("gptoss")
def gptoss():
    """gpt-oss with 16 experts, 4 used; MXFP4; experts of 44064 bytes (no multiple of 512), biases, attention sinks, sliding window"""
    width = Width(embedding=288, heads=6, kv_heads=2, head=32)
    experts, hidden, layers = 16, 288, 3
    tensors = embeddings(width, VOCABULARY)
    for index in range(layers):
        layer = f"blk.{index}"
        tensors += attention(layer, width, biases=True)
        tensors.append(Tensor(f"{layer}.attn_sinks.weight", (width.heads,), deviation=0.5))
        tensors.append(norm(f"{layer}.post_attention_norm.weight", width.embedding))
        tensors.append(router(layer, width, experts))
        tensors += expert_ffn(layer, width, experts, hidden, (Type.MXFP4,) * 3)
        tensors += expert_biases(layer, width, experts, hidden)
    parameters = common_parameters(width, layers, hidden) | {
        "attention.key_length": width.head,
        "attention.value_length": width.head,
        "attention.sliding_window": 32,
        "rope.freq_base": 150000.0,
        "expert_count": experts,
        "expert_used_count": 4,
        "expert_feed_forward_length": hidden,
    }
    return TinyModel("gpt-oss", parameters, tensors)


def _one_type(type_: Type) -> TinyModel:
    """Mixtral's shape with 256 x 256 experts of one type; the experts of the 16-bit types are fewer, to stay small."""
    experts = 4 if type_ in (Type.F16, Type.BF16) else 8
    width = Width(embedding=256, heads=4, kv_heads=2, head=64)
    return llama_moe(width, experts, used=2, hidden=256, types_by_layer=[(type_,) * 3] * 3)


@shape("mixed-k")
def mixed_k():
    """llama with 8 experts, 2 used; down is Q6_K in every other layer, all else Q4_K, as Q4_K_M files mix them"""
    width = Width(embedding=256, heads=4, kv_heads=2, head=64, matrix_type=Type.Q4_K)
    plain, better_down = (Type.Q4_K,) * 3, (Type.Q4_K, Type.Q4_K, Type.Q6_K)
    return llama_moe(width, experts=8, used=2, hidden=256, types_by_layer=[better_down, plain, better_down, plain])


@shape("iq4xs")
def iq4xs():
    """llama with 8 experts, 2 used; IQ4_XS"""
    return _one_type(Type.IQ4_XS)


@shape("q8_0")
def q8_0():
    """llama with 8 experts, 2 used; Q8_0"""
    return _one_type(Type.Q8_0)


@shape("f16")
def f16():
    """llama with 4 experts, 2 used; F16"""
    return _one_type(Type.F16)


@shape("bf16")
def bf16():
    """llama with 4 experts, 2 used; BF16"""
    return _one_type(Type.BF16)


@shape("dense-mixed")
def dense_mixed():
    """dense llama, 8 layers; down is Q6_K in every other layer, all else Q4_K"""
    width = Width(embedding=256, heads=4, kv_heads=2, head=64, matrix_type=Type.Q4_K)
    layers, hidden = 8, 1024
    tensors = embeddings(width, VOCABULARY)
    for index in range(layers):
        layer = f"blk.{index}"
        tensors += attention(layer, width)
        tensors.append(norm(f"{layer}.ffn_norm.weight", width.embedding))
        tensors += dense_ffn(layer, width, hidden, (Type.Q4_K, Type.Q4_K, Type.Q4_K if index % 2 else Type.Q6_K))
    return TinyModel("llama", common_parameters(width, layers, hidden), tensors)


@shape("split3")
def split3():
    """the mixtral model with other weights, cut into three files without regard to layers"""
    return replace(mixtral(), file_count=3)


@shape("align64")
def align64():
    """llama with 7 experts, 2 used; MXFP4; general.alignment is 64 and expert tensors end between two multiples of it"""
    width = Width(embedding=160, heads=5, kv_heads=1, head=32)
    model = llama_moe(width, experts=7, used=2, hidden=160, types_by_layer=[(Type.MXFP4,) * 3] * 4)
    return replace(model, alignment=64)
