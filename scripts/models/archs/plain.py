"""Mixtures with ordinary attention, and dense models whose layers are used several times in a pass."""

from archs.spec import DENSE_FIRST, HIDDEN, ROUTED, SHARED, SIGMOID, SOFTMAX, Parameters, architecture

# The experts are as wide as the FFN is said to be.
OLD_ROUTED: Parameters = ROUTED | {"feed_forward_length": HIDDEN}

architecture("phimoe", OLD_ROUTED)
architecture("dbrx", OLD_ROUTED, {"attention.clamp_kqv": 8.0})
architecture("arctic", OLD_ROUTED)
architecture(
    "cohere2moe",
    ROUTED,
    SHARED,
    DENSE_FIRST,
    SIGMOID,
    {"attention.sliding_window": 32, "attention.sliding_window_pattern": [True, True, True, False], "logit_scale": 1.0},
)
architecture("minimax-m2", ROUTED, SIGMOID)
architecture(
    "minimax-m3",
    ROUTED,
    SHARED,
    DENSE_FIRST,
    SIGMOID,
    {
        "attention.indexer.head_count": 2,
        "attention.indexer.key_length": 32,
        "attention.indexer.top_k": 4,
        "attention.indexer.block_size": 4,
        "attention.indexer.local_blocks": 1,
    },
)
architecture("hy_v3", ROUTED, SHARED, DENSE_FIRST, SIGMOID)
architecture("glm4moe", ROUTED, SHARED, DENSE_FIRST, SIGMOID, unused_nextn=True)
architecture("qwen2moe", ROUTED, SHARED, SOFTMAX)

# Every layer is used `num_loops` times in a pass.
architecture("nanbeige", {"num_loops": 3})
# Two stacks of two layers; a pass goes through the lower one twice before it goes through the upper one, and all of that twice.
architecture("hrm_text", {"block_count": 12, "hrm.layers_per_stack": 2, "hrm.h_cycles": 2, "hrm.l_cycles": 2})
