"""Dense models whose layers are used several times in a pass, and one that reads a whole text before it writes."""

from archs.spec import architecture

# Every layer is used `num_loops` times in a pass.
architecture("nanbeige", {"num_loops": 3})
# Two stacks of two layers; a pass goes through the lower one twice before it goes through the upper one, and all of that twice.
architecture("hrm_text", {"block_count": 12, "hrm.layers_per_stack": 2, "hrm.h_cycles": 2, "hrm.l_cycles": 2})
# An encoder and a decoder, whose layers are numbered alike.
architecture("t5", {"attention.relative_buckets_count": 8, "decoder_start_token_id": 0, "attention.head_count_kv": 4})
