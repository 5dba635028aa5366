//! What part of a model a tensor is, told by the names that GGUF fixes.

use super::TensorInfo;

/// The part that a tensor plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The experts of one layer's gate, up, down or fused gate and up matrix, one after the other.
    Expert,
    /// Experts whose numbers are not the choices of the layer's router: those that groups of experts share (`chexps`), whose
    /// numbers follow from its choices, and those of attention's values, which have a router of their own.
    OtherExpert,
    /// A dense layer's feed-forward matrix.
    DenseFeedForward,
    /// A matrix of the experts that every token uses, or one that leads to the routed experts and back.
    SharedExpert,
    /// A projection of attention, also latent or linear attention, or of what stands in for it: a state space, a short convolution.
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
    /// a model's bytes and the least used of them; then what few, large reads serve best. Tables are streamed whenever
    /// anything is; the embeddings of tokens come last, because prompts use many rows of them.
    pub const STREAMABLE: [Self; 6] = [
        Self::Expert,
        Self::OtherExpert,
        Self::DenseFeedForward,
        Self::SharedExpert,
        Self::Attention,
        Self::TokenEmbedding,
    ];

    /// Whether a tensor holds experts, of which a token uses some.
    pub fn has_experts(self) -> bool {
        matches!(self, Self::Expert | Self::OtherExpert)
    }

    /// Whether a use of it reads some rows, and not all of it.
    pub fn is_looked_up(self) -> bool {
        matches!(self, Self::Table | Self::TokenEmbedding)
    }
}

/// The role of a tensor.
///
/// Matrices that every architecture multiplies with as they are (`MUL_MAT`, `MUL_MAT_ID`) have a role of their own, and what is looked
/// up by the row; norms, biases and scales are small: they are `Other`, as is the output matrix.
pub fn role_of(tensor: &TensorInfo) -> Role {
    // Of a type that is not known it is not known either where an expert or a row begins.
    if tensor.ggml_type.is_known() { role_by_name(tensor) } else { Role::Other }
}

fn role_by_name(tensor: &TensorInfo) -> Role {
    let Some((_, part)) = split_layer(&tensor.name) else {
        return match &*tensor.name {
            "per_layer_token_embd.weight" if tensor.shape[2..] == [1, 1] => Role::Table,
            "token_embd.weight" if tensor.shape[2..] == [1, 1] => Role::TokenEmbedding,
            _ => Role::Other,
        };
    };
    let Some(part) = part.strip_suffix(".weight") else { return Role::Other };
    match (tensor.shape, part) {
        ([.., fourth], _) if fourth != 1 => Role::Other,
        ([_, _, 1, _], _) => role_of_matrix(part),
        (_, "ffn_gate_exps" | "ffn_up_exps" | "ffn_down_exps" | "ffn_gate_up_exps") => Role::Expert,
        (_, "ffn_gate_chexps" | "ffn_up_chexps" | "ffn_down_chexps" | "attn_v_exps") => Role::OtherExpert,
        // A matrix for each head, all of which every token uses.
        (_, "attn_k_b" | "attn_v_b") => Role::Attention,
        _ => Role::Other,
    }
}

fn role_of_matrix(part: &str) -> Role {
    match part {
        "ffn_gate" | "ffn_up" | "ffn_down" => Role::DenseFeedForward,
        "ffn_gate_shexp" | "ffn_up_shexp" | "ffn_down_shexp" => Role::SharedExpert,
        "ffn_latent_down" | "ffn_latent_up" | "ffn_routed_down" | "ffn_routed_up" => Role::SharedExpert,
        "attn_q" | "attn_k" | "attn_v" | "attn_qkv" | "attn_output" | "attn_o" | "attn_gate" => Role::Attention,
        "cross_attn_q" | "cross_attn_k" | "cross_attn_v" | "cross_attn_o" => Role::Attention,
        "attn_q_a" | "attn_q_b" | "attn_kv" | "attn_kv_a_mqa" | "attn_kv_b" | "attn_k_b" | "attn_v_b" => {
            Role::Attention
        }
        "attn_output_a" | "attn_output_b" => Role::Attention,
        "ssm_in" | "ssm_out" | "ssm_g" | "shortconv.in_proj" | "shortconv.out_proj" => Role::Attention,
        _ => Role::Other,
    }
}

/// What a tensor is, for people.
pub fn label_of(tensor: &TensorInfo) -> &'static str {
    if tensor.shape[1..3] == [1, 1] {
        return "norms and biases";
    }
    match role_by_name(tensor) {
        Role::Expert | Role::OtherExpert => "experts",
        Role::SharedExpert => "shared experts",
        Role::DenseFeedForward => "feed-forward",
        Role::Attention => "attention",
        Role::Table => "tables",
        Role::TokenEmbedding => "embeddings",
        Role::Other => label_of_other(&tensor.name),
    }
}

/// What never streams is told by the part of the model that it belongs to.
fn label_of_other(name: &str) -> &'static str {
    let Some((_, part)) = split_layer(name) else {
        return if name.starts_with("output.") { "output" } else { "other" };
    };
    let starts_with = |prefixes: &[&str]| prefixes.iter().any(|prefix| part.starts_with(prefix));
    match part {
        _ if part.contains("shexp") => "shared experts",
        _ if starts_with(&["ffn_gate_inp", "ffn_gate_tid2eid"]) => "routers",
        _ if starts_with(&["ffn_"]) => "feed-forward",
        _ if starts_with(&["attn", "cross_attn", "ssm", "shortconv"]) => "attention",
        _ => "other",
    }
}

/// What a decoder's layers are numbered from, in models that have an encoder as well.
const FIRST_DECODER_LAYER: u32 = 1 << 16;

/// A tensor's layer and the rest of its name; tensors outside the layers have none.
fn split_layer(name: &str) -> Option<(u32, &str)> {
    let (first, rest) = match name.split_once("blk.")? {
        ("" | "enc.", rest) => (0, rest),
        ("dec.", rest) => (FIRST_DECODER_LAYER, rest),
        _ => return None,
    };
    let (layer, part) = rest.split_once('.')?;
    Some((layer.parse::<u32>().ok()?.checked_add(first)?, part))
}

/// The layer number in a tensor's name; tensors outside the layers have none.
pub fn layer_of(name: &str) -> Option<u32> {
    Some(split_layer(name)?.0)
}

/// Where a tensor is likely to come among those of its layer: a first guess at the order of use.
pub fn rank_in_layer(name: &str) -> usize {
    const USUAL: [&str; 11] = [
        "attn_q",
        "attn_k",
        "attn_v",
        "ssm_in",
        "in_proj",
        "attn_gate",
        "ssm_g",
        "ssm_out",
        "out_proj",
        "attn_o",
        "up",
    ];
    let usual = USUAL.iter().position(|part| name.contains(part));
    usual.unwrap_or(if name.contains("gate") { USUAL.len() } else { USUAL.len() + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgmlType;

    fn tensor(name: &str, shape: [u64; 4]) -> TensorInfo {
        let ggml_type = GgmlType::from_id(0).unwrap();
        TensorInfo { name: name.to_owned(), ggml_type, shape, file: 0, offset: 0, size_bytes: 4 }
    }

    fn role(name: &str, shape: [u64; 4]) -> Role {
        role_of(&tensor(name, shape))
    }

    #[test]
    fn people_are_told_what_the_role_says() {
        let label = |name: &str| label_of(&tensor(&format!("{name}.weight"), [64, 32, 1, 1]));
        for (names, expected) in [
            (&["blk.0.shortconv.in_proj", "dec.blk.1.cross_attn_q", "blk.0.attn_kv_b", "blk.0.ssm_x"][..], "attention"),
            (&["enc.blk.0.ffn_up", "blk.3.ffn_down"], "feed-forward"),
            (&["blk.0.ffn_up_shexp", "blk.0.ffn_gate_inp_shexp", "blk.0.ffn_latent_up"], "shared experts"),
            (&["blk.0.ffn_gate_inp", "blk.0.ffn_gate_tid2eid"], "routers"),
            (&["token_embd"], "embeddings"),
            (&["per_layer_token_embd"], "tables"),
            (&["output"], "output"),
            (&["pooler", "output_norm_projection"], "other"),
        ] {
            names.iter().for_each(|name| assert_eq!(label(name), expected, "{name}"));
        }
        for name in ["ffn_up_exps", "ffn_up_chexps", "attn_v_exps"] {
            let experts = tensor(&format!("blk.0.{name}.weight"), [64, 32, 8, 1]);
            assert_eq!(label_of(&experts), "experts", "{name}");
        }
        assert_eq!(label_of(&tensor("enc.blk.0.attn_q.bias", [64, 1, 1, 1])), "norms and biases");
    }

    #[test]
    fn only_whole_matrices_of_the_layers_are_streamable() {
        assert_eq!(role("blk.0.ffn_up_exps.weight", [64, 32, 8, 1]), Role::Expert);
        assert_eq!(role("blk.10.ffn_gate_up_exps.weight", [64, 64, 8, 1]), Role::Expert);
        assert_eq!(role("blk.3.ffn_down.weight", [32, 64, 1, 1]), Role::DenseFeedForward);
        assert_eq!(role("blk.0.ffn_up_shexp.weight", [64, 32, 1, 1]), Role::SharedExpert);
        assert_eq!(role("blk.0.attn_qkv.weight", [64, 32, 1, 1]), Role::Attention);
        assert_eq!(role("blk.0.attn_output.weight", [64, 32, 1, 1]), Role::Attention);
        for name in ["ffn_up_exps.bias", "ffn_gate_inp.weight", "attn_q.lora_a", "attn_q_norm.weight", "attn_q.bias"] {
            assert_eq!(role(&format!("blk.0.{name}"), [64, 32, 1, 1]), Role::Other, "{name}");
        }
        assert_eq!(role("blk.0.ffn_up.weight", [64, 32, 8, 1]), Role::Other);
        assert_eq!(role("blk.0.ffn_up_exps.weight", [64, 32, 8, 2]), Role::Other);
        assert_eq!(role("output.weight", [64, 32, 1, 1]), Role::Other);
        assert_eq!(role("per_layer_token_embd.weight", [64, 32, 1, 1]), Role::Table);
        assert_eq!(role("token_embd.weight", [64, 32, 1, 1]), Role::TokenEmbedding);
        assert_eq!(layer_of("blk.17.ffn_up.weight"), Some(17));
        assert_eq!(layer_of("output.weight"), None);
    }

    #[test]
    fn experts_that_the_router_does_not_choose_are_told_apart() {
        for name in ["ffn_up_chexps", "ffn_gate_chexps", "ffn_down_chexps", "attn_v_exps"] {
            assert_eq!(role(&format!("blk.2.{name}.weight"), [64, 32, 8, 1]), Role::OtherExpert, "{name}");
            assert_eq!(role(&format!("blk.2.{name}.weight"), [64, 32, 1, 1]), Role::Other, "{name}");
        }
    }

    #[test]
    fn latent_attention_and_state_spaces_have_matrices_that_are_streamable() {
        let names = ["attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_gate", "attn_output_a", "ssm_in", "ssm_out"];
        for name in names {
            assert_eq!(role(&format!("blk.0.{name}.weight"), [64, 32, 1, 1]), Role::Attention, "{name}");
            assert_eq!(role(&format!("blk.0.{name}.weight"), [64, 32, 4, 1]), Role::Other, "{name}");
        }
        assert_eq!(role("blk.0.attn_k_b.weight", [32, 64, 4, 1]), Role::Attention, "one matrix for each head");
        assert_eq!(role("blk.0.ssm_conv1d.weight", [4, 64, 1, 1]), Role::Other);
    }

    #[test]
    fn encoder_and_decoder_have_layers_of_their_own() {
        assert_eq!(role("enc.blk.1.ffn_up.weight", [64, 32, 1, 1]), Role::DenseFeedForward);
        assert_eq!(role("dec.blk.1.cross_attn_k.weight", [64, 32, 1, 1]), Role::Attention);
        assert_eq!(layer_of("enc.blk.1.attn_q.weight"), Some(1));
        assert!(layer_of("dec.blk.1.attn_q.weight") > layer_of("enc.blk.99.attn_q.weight"));
        assert_eq!(role("other.blk.1.ffn_up.weight", [64, 32, 1, 1]), Role::Other);
    }

    #[test]
    fn attention_comes_before_the_feed_forward_matrices() {
        let names = ["attn_q", "attn_v", "attn_output", "ffn_up", "ffn_gate_exps", "ffn_down"];
        let ranks: Vec<usize> = names.iter().map(|name| rank_in_layer(&format!("blk.1.{name}.weight"))).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
    }
}
