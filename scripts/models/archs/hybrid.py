"""State-space layers and linear attention, alone or in turn with attention."""

from parameters import Wide

from archs.spec import DENSE_FIRST, HIDDEN, ROUTED, SHARED, SIGMOID, Parameters, architecture

MAMBA2: Parameters = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 256,
    "ssm.state_size": 32,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 2,
}

MAMBA: Parameters = {"ssm.conv_kernel": 4, "ssm.inner_size": 256, "ssm.state_size": 16, "ssm.time_step_rank": 8}

# State-space layers, and one with attention.
SOME_ATTENTION: Parameters = {"attention.head_count_kv": [0, 0, 2, 0]}

# Linear attention by gated delta nets, and in every fourth layer full attention.
DELTA_NET: Parameters = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 32,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "full_attention_interval": 4,
}

# One thing a layer: a state-space layer where there are no heads and no FFN, else attention, else an FFN.
NEMOTRON: Parameters = MAMBA2 | {
    "block_count": 8,
    "attention.head_count": [4] * 8,
    "attention.head_count_kv": [0, 0, 2, 0, 0, 0, 2, 0],
    "feed_forward_length": [0, HIDDEN, 0, HIDDEN, 0, HIDDEN, 0, HIDDEN],
}
NEMOTRON_MOE: Parameters = NEMOTRON | ROUTED | SHARED | SIGMOID

architecture("nemotron_h", NEMOTRON)
architecture("nemotron_h_moe", NEMOTRON_MOE, leave_out=r"ffn_latent_")
architecture("nemotron-3-super", NEMOTRON_MOE, {"moe_latent_size": 64}, of="nemotron_h_moe")
architecture("minimax-01", ROUTED, {"feed_forward_length": HIDDEN, "residual_scale": 3.5, "attention.recurrent_layers": [True, True, True, False]})
# Rows of a table, found by hashes of the last two and three tokens; several residual streams; experts.
PLE_HEADS, PLE_ROWS = 4, 300
architecture(
    "qwen4exp",
    DELTA_NET,
    ROUTED,
    SHARED,
    {
        "rope.dimension_sections": [8, 4, 4, 0],
        "hyper_connection.count": 4,
        "hyper_connection.low_rank": 8,
        "attention.indexer.head_count": 4,
        "attention.indexer.key_length": 32,
        "attention.indexer.top_k": 48,
        "attention.compress_ratios": [4] * 4,
        "ple.layers": [0],
        "ple.ngram_size": 3,
        "ple.heads_per_ngram": PLE_HEADS // 2,
        "ple.conv_kernel": 4,
        "ple.eos_token_id": 0,
        "embedding_length_per_layer_input": 32,
        "ple.layer_multipliers": Wide([1, 3, 5]),
        "ple.head_offsets": Wide(range(0, PLE_HEADS * PLE_ROWS, PLE_ROWS)),
        "ple.head_vocab_sizes": Wide([PLE_ROWS] * PLE_HEADS),
    },
)
architecture("mamba", MAMBA)
architecture("mamba2", MAMBA2)
architecture("jamba", MAMBA, ROUTED, SOME_ATTENTION, {"feed_forward_length": HIDDEN})
architecture("granitehybrid", MAMBA2, ROUTED, SOME_ATTENTION, {"feed_forward_length": HIDDEN, "expert_shared_feed_forward_length": HIDDEN})
architecture("lfm2", SOME_ATTENTION, {"shortconv.l_cache": 3})
architecture("lfm2moe", SOME_ATTENTION, ROUTED, SIGMOID, DENSE_FIRST, {"shortconv.l_cache": 3})
architecture("qwen3next", DELTA_NET, ROUTED, SHARED)
architecture("qwen35moe", DELTA_NET, ROUTED, SHARED, {"rope.dimension_sections": [8, 4, 4, 0]}, unused_nextn=True)
