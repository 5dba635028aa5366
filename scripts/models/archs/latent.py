"""Multi-head latent attention: DeepSeek and what is built like it, also beside layers of linear attention."""

from archs.spec import DENSE_FIRST, LAYERS, ROUTED, SHARED, SIGMOID, Parameters, architecture

RANK, PLAIN, ROTATED, VALUE = 64, 32, 32, 32

LATENT: Parameters = {
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 96,
    "attention.kv_lora_rank": RANK,
    "attention.key_length": RANK + ROTATED,
    "attention.value_length": RANK,
    "attention.key_length_mla": PLAIN + ROTATED,
    "attention.value_length_mla": VALUE,
    "rope.dimension_count": ROTATED,
}
# An indexer picks the positions that attention looks at.
INDEXER: Parameters = {
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 48,
}
# Linear attention in all layers but the last; only there are there heads for keys and values.
LINEAR: Parameters = {
    "attention.head_count_kv": [0] * (LAYERS - 1) + [1],
    "attention.head_count": 4,
    "ssm.conv_kernel": 4,
    "kda.head_dim": 32,
    "kda.gate_lower_bound": -5.0,
}
SPARSE: Parameters = ROUTED | SHARED | SIGMOID | DENSE_FIRST

architecture(
    "deepseek4",
    ROUTED,
    SHARED,
    SIGMOID,
    INDEXER,
    {
        "expert_gating_func": 4,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 64,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "rope.dimension_count": 32,
        "attention.sliding_window": 32,
        "attention.output_group_count": 2,
        "attention.output_lora_rank": 32,
        "attention.compress_ratios": [0, 0, 4, 128],
        "attention.compress_rope_freq_base": 160000.0,
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 2,
        "hyper_connection.epsilon": 1e-6,
        "hash_layer_count": 1,
        "swiglu_clamp_exp": 10.0,
    },
    leave_out=r"exp_probs_b_vl",
)
architecture(
    "kimi-k3",
    LATENT,
    SPARSE,
    LINEAR,
    {
        "expert_latent_length": 64,
        "attn_res.block_size": 12,
        "activation.situ_beta": 4.0,
        "activation.situ_linear_beta": 25.0,
    },
)
