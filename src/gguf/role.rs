//! What part of a model a tensor is, told by the names that GGUF fixes.

use super::TensorInfo;

/// The part that a tensor plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The experts of one layer's gate, up, down or fused gate and up matrix, one after the other.
    Expert,
    /// A dense layer's feed-forward matrix.
    DenseFeedForward,
    /// A matrix of the experts that every token uses.
    SharedExpert,
    /// A projection of attention: query, key, value (also fused), or output.
    Attention,
    /// A table of which a token uses a few rows: embeddings of each layer, or of n-grams.
    Table,
    /// The embeddings of tokens, a table as well; often also the output matrix.
    TokenEmbedding,
    /// Anything else: always resident.
    Other,
}

impl Role {
    /// The roles that can be streamed, in the order in which memory is gained by it at the least cost: experts are most of
    /// a model's bytes and the least used of them; then what few, large reads serve best. Tables are streamed whenever anything is; the embeddings of tokens
    /// come last, because prompts use many rows of them.
    pub const STREAMABLE: [Self; 5] =
        [Self::Expert, Self::DenseFeedForward, Self::SharedExpert, Self::Attention, Self::TokenEmbedding];
}

impl Role {
    /// Whether a use of it reads some rows, and not all of it.
    pub fn is_looked_up(self) -> bool {
        matches!(self, Self::Table | Self::TokenEmbedding)
    }
}

/// The role of a tensor.
///
/// Only matrices that every architecture multiplies with as they are (`MUL_MAT`, `MUL_MAT_ID`) have a streamable role;
/// norms, biases and scales are small: they are `Other`, as are the embedding and output matrices.
pub fn role_of(tensor: &TensorInfo) -> Role {
    let [_, _, count, fourth] = tensor.shape;
    // Of a type that is not known it is not known either where an expert or a row begins.
    if fourth != 1 || !tensor.ggml_type.is_known() {
        return Role::Other;
    }
    let Some(rest) = tensor.name.strip_prefix("blk.") else {
        return match &*tensor.name {
            "per_layer_token_embd.weight" if count == 1 => Role::Table,
            "token_embd.weight" if count == 1 => Role::TokenEmbedding,
            _ => Role::Other,
        };
    };
    let Some((_layer, part)) = rest.split_once('.') else { return Role::Other };
    match part {
        "ffn_gate_exps.weight" | "ffn_up_exps.weight" | "ffn_down_exps.weight" | "ffn_gate_up_exps.weight"
            if count > 1 =>
        {
            Role::Expert
        }
        _ if count != 1 => Role::Other,
        "ffn_gate.weight" | "ffn_up.weight" | "ffn_down.weight" => Role::DenseFeedForward,
        "ffn_gate_shexp.weight" | "ffn_up_shexp.weight" | "ffn_down_shexp.weight" => Role::SharedExpert,
        "attn_q.weight" | "attn_k.weight" | "attn_v.weight" | "attn_qkv.weight" | "attn_output.weight" => {
            Role::Attention
        }
        _ => Role::Other,
    }
}

/// The layer number in a tensor's name; tensors outside the layers have none.
pub fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Where a tensor is likely to come among those of its layer: a first guess at the order of use.
pub fn rank_in_layer(name: &str) -> usize {
    const USUAL: [&str; 6] = ["attn_q", "attn_k", "attn_v", "attn_output", "up", "gate"];
    USUAL.iter().position(|part| name.contains(part)).unwrap_or(USUAL.len())
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
    fn only_whole_matrices_of_the_layers_are_streamable() {
        assert_eq!(role("blk.0.ffn_up_exps.weight", [64, 32, 8, 1]), Role::Expert);
        assert_eq!(role("blk.10.ffn_gate_up_exps.weight", [64, 64, 8, 1]), Role::Expert);
        assert_eq!(role("blk.3.ffn_down.weight", [32, 64, 1, 1]), Role::DenseFeedForward);
        assert_eq!(role("blk.0.ffn_up_shexp.weight", [64, 32, 1, 1]), Role::SharedExpert);
        assert_eq!(role("blk.0.attn_qkv.weight", [64, 32, 1, 1]), Role::Attention);
        assert_eq!(role("blk.0.attn_output.weight", [64, 32, 1, 1]), Role::Attention);
        for name in ["ffn_up_exps.bias", "ffn_gate_inp.weight", "attn_k_b.weight", "attn_q_norm.weight", "attn_q.bias"]
        {
            assert_eq!(role(&format!("blk.0.{name}"), [64, 32, 1, 1]), Role::Other, "{name}");
        }
        assert_eq!(role("blk.0.ffn_up.weight", [64, 32, 8, 1]), Role::Other);
        assert_eq!(role("output.weight", [64, 32, 1, 1]), Role::Other);
        assert_eq!(role("per_layer_token_embd.weight", [64, 32, 1, 1]), Role::Table);
        assert_eq!(role("token_embd.weight", [64, 32, 1, 1]), Role::TokenEmbedding);
        assert_eq!(layer_of("blk.17.ffn_up.weight"), Some(17));
        assert_eq!(layer_of("output.weight"), None);
    }

    #[test]
    fn attention_comes_before_the_feed_forward_matrices() {
        let names = ["attn_q", "attn_v", "attn_output", "ffn_up", "ffn_gate_exps", "ffn_down"];
        let ranks: Vec<usize> = names.iter().map(|name| rank_in_layer(&format!("blk.1.{name}.weight"))).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
    }
}
