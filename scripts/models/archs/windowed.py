"""Mixtures in which some layers attend to a window of the last tokens only."""

from archs.spec import DENSE_FIRST, HIDDEN, LAYERS, ROUTED, SHARED, SIGMOID, Parameters, architecture

PATTERN = [True, True, True, False]
WINDOW: Parameters = {"attention.sliding_window": 32, "attention.sliding_window_pattern": PATTERN, "rope.freq_base_swa": 5000.0}
SPARSE: Parameters = ROUTED | SHARED | SIGMOID | DENSE_FIRST | WINDOW

architecture("cohere2moe", SPARSE, {"logit_scale": 1.0})
architecture("afmoe", SPARSE)
architecture("laguna", SPARSE)
architecture("exaone-moe", SPARSE)
architecture("mimo2", SPARSE)
architecture("step35", SPARSE)
architecture("maple", SPARSE, {"swiglu_clamp_exp": [7.0] * LAYERS})
architecture("mellum", ROUTED, WINDOW)
architecture("smallthinker", ROUTED, WINDOW, SIGMOID)
architecture("granite_swa", ROUTED, WINDOW, {"feed_forward_length": HIDDEN, "logit_scale": 2.0, "expert_shared_feed_forward_length": HIDDEN})
# Chunks instead of windows; every second layer is dense.
architecture("llama4", ROUTED, {"interleave_moe_layer_step": 2, "attention.sliding_window": 64})
