//! The hyper-parameters that the planner needs, from the key-value section of a model's first file.

use super::metadata::Metadata;
use crate::error::Result;

/// What the header says about the model's architecture.
///
/// A number is 0 where the key is absent; where a key holds one number per layer, it is the largest of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HyperParameters {
    /// `general.architecture`, such as `qwen3moe`; empty when absent.
    pub architecture: String,
    /// `general.name`: what the author calls the model.
    pub name: Option<String>,
    /// Transformer layers.
    pub block_count: u64,
    /// Experts in a layer; 0 in dense models.
    pub expert_count: u64,
    /// Experts that a token uses in a layer; 0 in dense models.
    pub expert_used_count: u64,
    /// Groups that the experts of a layer lie in; 0 or 1 when they are chosen from all.
    pub expert_group_count: u64,
    /// Groups that a token's experts are chosen from.
    pub expert_group_used_count: u64,
    /// What a router's scores are made of its logits by, as GGUF numbers it; 0 when the file does not tell.
    pub expert_gating_func: u64,
    /// Elements of the hidden state.
    pub embedding_length: u64,
    /// Elements of the hidden state of a feed-forward network.
    pub feed_forward_length: u64,
    /// Of the layers, the last ones that draft the tokens after the next one (MTP); 0 in most files.
    pub nextn_predict_layers: u64,
    /// Rows of the table of n-grams that a token looks up: one for each hash; 0 where there is no such table.
    pub ngram_row_count: u64,
    /// Tokens that the model was trained to attend to.
    pub context_length: u64,
}

impl HyperParameters {
    /// Picks the keys of the file's own architecture, which may come in any order.
    pub(super) fn read(metadata: &Metadata<'_>) -> Result<Self> {
        // An architecture that is not UTF-8 names no keys; the numbers are then 0, as for an unknown one.
        let lossy = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        let architecture = metadata.text("general.architecture")?.map(lossy).unwrap_or_default();
        let number =
            |key: &str| -> Result<u64> { Ok(metadata.unsigned(&format!("{architecture}.{key}"))?.unwrap_or(0)) };
        Ok(Self {
            block_count: number("block_count")?,
            expert_count: number("expert_count")?,
            expert_used_count: number("expert_used_count")?,
            expert_group_count: number("expert_group_count")?,
            expert_group_used_count: number("expert_group_used_count")?,
            expert_gating_func: number("expert_gating_func")?,
            embedding_length: number("embedding_length")?,
            feed_forward_length: number("feed_forward_length")?,
            nextn_predict_layers: number("nextn_predict_layers")?,
            ngram_row_count: number("ple.ngram_size")?.saturating_sub(1).saturating_mul(number("ple.heads_per_ngram")?),
            context_length: number("context_length")?,
            name: metadata.text("general.name")?.map(lossy),
            architecture,
        })
    }

    /// Puts another number in the place of one that the file has under a key. Keys that nothing goes by are ignored.
    pub(super) fn set(&mut self, key: &str, value: u64) {
        let Some(own) = key.strip_prefix(&*self.architecture).and_then(|rest| rest.strip_prefix('.')) else { return };
        let place = match own {
            "block_count" => &mut self.block_count,
            "expert_count" => &mut self.expert_count,
            "expert_used_count" => &mut self.expert_used_count,
            "embedding_length" => &mut self.embedding_length,
            "feed_forward_length" => &mut self.feed_forward_length,
            "nextn_predict_layers" => &mut self.nextn_predict_layers,
            "context_length" => &mut self.context_length,
            _ => return,
        };
        *place = value;
    }
}
