"""State-space layers and linear attention, alone or in turn with attention."""

from archs.spec import HIDDEN, ROUTED, SHARED, SIGMOID, Parameters, architecture

MAMBA2: Parameters = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 256,
    "ssm.state_size": 32,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 2,
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
architecture("nemotron-3-super", NEMOTRON_MOE, {"moe_latent_size": 64}, of="nemotron_h_moe", sources=("nemotron-h.cpp", "nemotron-h-moe.cpp"))
architecture("minimax-01", ROUTED, {"feed_forward_length": HIDDEN, "residual_scale": 3.5, "attention.recurrent_layers": [True, True, True, False]})
