"""Gemma: tables that every layer looks up a row of, and experts beside a dense FFN."""

from archs.spec import HIDDEN, ROUTED, Parameters, architecture

# The norms after attention and after the FFN stand between them and the residual.
NORMS_AFTER = "post_attention_norm|post_ffw_norm|post_norm|laurel_post_norm"

# Some layers look at a window only; the heads of the others are twice as large. The last two layers may use the keys and values of
# the two in the middle, of which one has a window and one has not.
WINDOWED: Parameters = {
    "block_count": 8,
    "attention.sliding_window": 32,
    "attention.sliding_window_pattern": [True, True, False, True, True, False, True, False],
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "rope.dimension_count": 64,
    "rope.dimension_count_swa": 32,
    "rope.freq_base": 1000000.0,
    "rope.freq_base_swa": 10000.0,
    "final_logit_softcapping": 30.0,
}

architecture(
    "gemma4",
    WINDOWED,
    {"embedding_length_per_layer_input": 64, "attention.shared_kv_layers": 2},
    leave_out=r"^output\.weight|blk\.[67]\.attn_(k|v|k_norm)\.",
    keep=r"^rope_freqs\.",
    norms_after=NORMS_AFTER,
)
architecture(
    "gemma4-moe",
    WINDOWED,
    ROUTED,
    {"embedding_length_per_layer_input": 0},
    of="gemma4",
    leave_out=r"^output\.weight",
    keep=r"^rope_freqs\.|ffn_gate_inp\.scale|ffn_down_exps\.scale|ffn_gate_up_exps",
    norms_after=NORMS_AFTER + "|post_ffw_norm_[12]",
)
# llama.cpp fixes the number of layers that keep keys and values at 20, and the width of a layer's row at 256.
architecture(
    "gemma3n",
    {
        "block_count": 22,
        "feed_forward_length": HIDDEN,
        "attention.sliding_window": 32,
        "attention.sliding_window_pattern": 5,
        "attention.shared_kv_layers": 2,
        "altup.num_inputs": 4,
    },
    leave_out=r"^output\.weight",
    norms_after=NORMS_AFTER,
)
