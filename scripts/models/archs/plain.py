"""Mixtures with ordinary attention in every layer."""

from archs.spec import DENSE_FIRST, EXPERTS, HIDDEN, ROUTED, SHARED, SIGMOID, SOFTMAX, USED, Parameters, architecture

# The experts are as wide as the FFN is said to be.
OLD_ROUTED: Parameters = ROUTED | {"feed_forward_length": HIDDEN}
SPARSE: Parameters = ROUTED | SHARED | SIGMOID | DENSE_FIRST
SCALED: Parameters = {"logit_scale": 2.0, "residual_scale": 0.5, "embedding_scale": 2.0, "attention.scale": 0.2}

architecture("phimoe", OLD_ROUTED)
architecture("dbrx", OLD_ROUTED, {"attention.clamp_kqv": 8.0})
architecture("arctic", OLD_ROUTED)
architecture("olmoe", OLD_ROUTED, {"attention.head_count_kv": 4})
architecture("grok", ROUTED, {"router_logit_softcapping": 30.0, "attn_logit_softcapping": 30.0})
architecture("llada-moe", ROUTED, leave_out=r"_shexp|inp_shexp")
architecture("rnd1", ROUTED)
architecture("qwen2moe", ROUTED, SHARED, SOFTMAX)
architecture("qwen3vlmoe", ROUTED, {"rope.dimension_sections": [8, 4, 4, 0]})
architecture("minicpm", OLD_ROUTED, SCALED)
architecture("granite", SCALED)
architecture("granitemoe", OLD_ROUTED, SCALED, {"expert_shared_feed_forward_length": HIDDEN})
architecture("mistral3", OLD_ROUTED)
architecture("minimax-m2", ROUTED, SIGMOID)
architecture("deepseek", ROUTED, SHARED, DENSE_FIRST, {"expert_weights_scale": 1.0})
architecture("bailingmoe", ROUTED, SHARED, DENSE_FIRST, SOFTMAX)
architecture("bailingmoe2", SPARSE, {"expert_group_count": 4, "expert_group_used_count": 2})
architecture("dots1", SPARSE, {"attention.head_count_kv": 4})
architecture("ernie4_5-moe", SPARSE, {"interleave_moe_layer_step": 1})
architecture("hunyuan-moe", ROUTED, SHARED)
architecture("hy_v3", SPARSE)
architecture("glm4moe", SPARSE, unused_nextn=True)
architecture("llama-embed", OLD_ROUTED, encoder=True)
architecture("nomic-bert-moe", OLD_ROUTED, {"moe_every_n_layers": 2, "tokenizer.ggml.token_type_count": 2}, encoder=True)
architecture(
    "minimax-m3",
    SPARSE,
    {
        "attention.indexer.head_count": 2,
        "attention.indexer.key_length": 32,
        "attention.indexer.top_k": 4,
        "attention.indexer.block_size": 4,
        "attention.indexer.local_blocks": 1,
    },
)
# Groups of experts share a smaller one, whose number is not the router's choice but follows from it.
architecture("grovemoe", ROUTED, {"expert_chunk_feed_forward_length": 32, "expert_group_scale": 0.05, "experts_per_group": 2})
# Values come out of experts as well, by a router of their own.
architecture(
    "k2-horizon",
    SPARSE,
    {"attention.group_norm_groups": 4, "attention.value_expert_count": EXPERTS, "attention.value_expert_used_count": USED},
)
# Stacks of LoRA adapters, one of which is chosen by the last token that names one.
architecture(
    "graniteswitch",
    SCALED,
    {"adapters.count": 2, "adapters.lora_rank": 8, "adapters.token_ids_activate": [101, 116], "adapters.token_ids_substitute": [97, 98]},
)
