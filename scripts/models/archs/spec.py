"""What describes a tiny model of one of llama.cpp's architectures, and the table of all of them.

A description says as little as it can: the parameters (the keys below the architecture's name), and which of the optional tensors
the real models do not have. Which tensors there are, and their shapes, llama.cpp itself tells (see tensors.py).
"""

from dataclasses import dataclass
from typing import Any

Parameters = dict[str, Any]

WIDTH = 128
LAYERS = 4
EXPERTS = 16
USED = 4
HIDDEN = 64  # of one expert

COMMON: Parameters = {
    "block_count": LAYERS,
    "context_length": 2048,
    "embedding_length": WIDTH,
    "feed_forward_length": 192,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}

# Routed experts, and what many models have beside them: an expert that every token uses, and a first layer that is dense.
ROUTED: Parameters = {"expert_count": EXPERTS, "expert_used_count": USED, "expert_feed_forward_length": HIDDEN}
SHARED: Parameters = {"expert_shared_count": 1, "expert_shared_feed_forward_length": HIDDEN}
DENSE_FIRST: Parameters = {"leading_dense_block_count": 1}

# How router outputs become weights.
SOFTMAX: Parameters = {"expert_gating_func": 1, "expert_weights_norm": True, "expert_weights_scale": 1.0}
SIGMOID: Parameters = SOFTMAX | {"expert_gating_func": 2, "expert_weights_scale": 2.5}


@dataclass(frozen=True)
class Architecture:
    """A tiny model of an architecture. `leave_out` and `keep` are regular expressions for names of tensors."""

    name: str
    architecture: str
    parameters: Parameters
    leave_out: str = ""  # optional tensors that it does without
    keep: str = ""  # tensors that it has although models usually have none such
    norms_after: str = ""  # norms between a block's output and the residual, by the part of the name after the layer
    unused_nextn: bool = False  # whether a layer that predicts one token more stands in the file, which nobody asks for
    encoder: bool = False  # whether it computes embeddings of a text and no logits


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(name: str, *parameters: Parameters, of: str | None = None, **more: Any) -> None:
    """Register a model under a name, which is also llama.cpp's name of its architecture unless `of` says another."""
    if name in ARCHITECTURES:
        raise ValueError(f"two models are named {name}")
    merged: Parameters = dict(COMMON)
    for part in parameters:
        merged |= part
    ARCHITECTURES[name] = Architecture(name, of or name, merged, **more)
