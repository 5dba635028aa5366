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
# Several residual streams, mixed before and after every block.
STREAMS: Parameters = {"hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 2, "hyper_connection.epsilon": 1e-6}
SPARSE: Parameters = ROUTED | SHARED | SIGMOID | DENSE_FIRST

architecture(
    "deepseek4",
    ROUTED,
    SHARED,
    SIGMOID,
    INDEXER,
    STREAMS,
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
        "hash_layer_count": 2,
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
architecture("deepseek2-ocr", ROUTED, SHARED, DENSE_FIRST, {"attention.head_count_kv": 4})
architecture("deepseek32", LATENT, INDEXER, SPARSE, {"rope.scaling.yarn_log_multiplier": 0.1})
architecture("glm-dsa", LATENT, INDEXER, SPARSE, unused_nextn=True)
architecture("mistral4", LATENT, SPARSE, {"expert_gating_func": 1})
architecture("kimi-linear", LATENT, LINEAR, SPARSE)
architecture("bailingmoe3", LATENT, LINEAR, SPARSE, {"kda.safe_gate": True})
architecture("hy_v4", LATENT, INDEXER, SPARSE, {"attention.indexer.types": [1, 0, 1, 0], "swiglu_clamp_exp": 10.0, **STREAMS, "hyper_connection.magnitude": 2.0})
architecture(
    "dots3note",
    LATENT,
    INDEXER,
    SPARSE,
    {
        "attention.sliding_window": 32,
        "attention.sliding_window_pattern": [True, False, True, False],
        "attention.indexer.types": [0, 1, 0, 1],
        "attention.kv_lora_rank_swa": RANK,
        "attention.key_length_swa": RANK + ROTATED,
        "attention.value_length_swa": RANK,
        "attention.key_length_mla_swa": PLAIN + ROTATED,
        "attention.value_length_mla_swa": VALUE,
        "rope.freq_base_swa": 5000.0,
    },
)
architecture(
    "glm5-next",
    LATENT,
    INDEXER,
    LINEAR,
    SPARSE,
    STREAMS,
    {"attention.head_count": 4, "rope.dimension_count": 0, "attention.key_length": RANK, "attention.indexer.kpool": 4, "attention.indexer.kpool_select_tail": True},
)
