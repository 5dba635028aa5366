//! What part of a model a tensor is, told by the names that GGUF fixes.

use crate::gguf::TensorInfo;

/// The part that a tensor plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The experts of one layer's gate, up, down or fused gate and up matrix, one after the other.
    Expert,
    /// A dense layer's feed-forward matrix.
    DenseFeedForward,
    /// Anything else: always resident.
    Other,
}

/// The role of a tensor.
///
/// Only matrices that every architecture multiplies with as they are (`MUL_MAT`, `MUL_MAT_ID`) have a streamable role.
/// Shared experts (`*_shexp`) are used by every token, biases and scales are small: they are `Other`.
pub fn role_of(tensor: &TensorInfo) -> Role {
    let Some(rest) = tensor.name.strip_prefix("blk.") else { return Role::Other };
    let Some((_layer, part)) = rest.split_once('.') else { return Role::Other };
    let [_, _, count, fourth] = tensor.shape;
    match part {
        "ffn_gate_exps.weight" | "ffn_up_exps.weight" | "ffn_down_exps.weight" | "ffn_gate_up_exps.weight"
            if count > 1 && fourth == 1 =>
        {
            Role::Expert
        }
        "ffn_gate.weight" | "ffn_up.weight" | "ffn_down.weight" if count == 1 && fourth == 1 => Role::DenseFeedForward,
        _ => Role::Other,
    }
}

/// The layer number in a tensor's name; tensors outside the layers have none.
pub fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgmlType;

    fn role(name: &str, shape: [u64; 4]) -> Role {
        role_of(&TensorInfo {
            name: name.to_owned(),
            ggml_type: GgmlType::from_id(0).unwrap(),
            shape,
            file: 0,
            offset: 0,
            size_bytes: 4,
        })
    }

    #[test]
    fn only_whole_feed_forward_matrices_are_streamable() {
        assert_eq!(role("blk.0.ffn_up_exps.weight", [64, 32, 8, 1]), Role::Expert);
        assert_eq!(role("blk.10.ffn_gate_up_exps.weight", [64, 64, 8, 1]), Role::Expert);
        assert_eq!(role("blk.3.ffn_down.weight", [32, 64, 1, 1]), Role::DenseFeedForward);
        for name in ["blk.0.ffn_up_exps.bias", "blk.0.ffn_up_shexp.weight", "blk.0.ffn_gate_inp.weight"] {
            assert_eq!(role(name, [64, 32, 8, 1]), Role::Other, "{name}");
        }
        assert_eq!(role("blk.0.ffn_norm.weight", [64, 1, 1, 1]), Role::Other);
        assert_eq!(role("output.weight", [64, 32, 1, 1]), Role::Other);
        assert_eq!(layer_of("blk.17.ffn_up.weight"), Some(17));
        assert_eq!(layer_of("output.weight"), None);
    }
}
