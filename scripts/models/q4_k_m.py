"""Which types llama-quantize gives the matrices of a llama-architecture model in Q4_K_M (llama.cpp, src/llama-quant.cpp)."""

from gguf import GGMLQuantizationType as Type


def uses_more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third one between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def layer_type(part: str, layer: int, layers: int, experts: int) -> Type:
    """The type of a layer's matrix, named without `blk.N.` and `.weight`. Few attention values serve eight experts: they get more bits."""
    if part in ("attn_k", "attn_v") and experts == 8:
        return Type.Q8_0
    if part == "attn_output" and experts == 8:
        return Type.Q5_K
    if part in ("attn_v", "ffn_down", "ffn_down_exps") and uses_more_bits(layer, layers):
        return Type.Q6_K
    # That of a model with as few key and value heads as Llama 70B, which is the one dense shape made here.
    return Type.Q5_K if part == "attn_v" else Type.Q4_K
