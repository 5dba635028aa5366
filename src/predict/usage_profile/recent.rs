//! What a user of a model did last, so that its next batch can be told what it follows.

use typed_index_collections::TiVec;

use super::ROWS_MAX;
use crate::index::{ExpertId, ExpertLayer};

/// What each layer used in the latest two batches of one user: of one context, whose batches follow one another.
#[derive(Debug, Default)]
pub struct Recent {
    /// The layer that came last.
    layer: Option<ExpertLayer>,
    /// By layer: the latest batch, and the one before it.
    rows: TiVec<ExpertLayer, [Rows; 2]>,
}

/// The experts of some tokens of a batch, the same number for each.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Tokens of the batch.
    token_count: usize,
    /// Those of them that are here, evenly spread over it.
    count: usize,
    /// Their experts, row after row.
    experts: Vec<u16>,
}

/// A batch and what it follows.
pub(super) struct Entered<'a> {
    pub(super) rows: &'a Rows,
    /// What the same tokens used in the layer before.
    pub(super) layer_before: Option<&'a Rows>,
    /// What the tokens before these used in the same layer.
    pub(super) token_before: Option<&'a Rows>,
}

impl Recent {
    /// A layer is entered by a batch.
    pub(super) fn enter(
        &mut self,
        layer: ExpertLayer,
        layer_count: usize,
        routing: &[i32],
        token_count: usize,
    ) -> Entered<'_> {
        self.rows.resize_with(layer_count, Default::default);
        let follows = self.layer.replace(layer).is_some_and(|before| before + 1 == layer);
        self.rows[layer].swap(0, 1);
        self.rows[layer][0].fill(routing, token_count);
        let [rows, before] = &self.rows[layer];
        let layer_before = layer.0.checked_sub(1).map(|above| &self.rows[ExpertLayer(above)][0]);
        Entered {
            rows,
            layer_before: layer_before.filter(|before| follows && before.token_count == token_count),
            // Rows of equal batches belong to the same sequences when each sequence has one, as in decode steps. Those
            // of large batches are parts of prompts.
            token_before: Some(before).filter(|before| before.token_count == token_count && token_count <= ROWS_MAX),
        }
    }

    /// The experts that a layer used in the latest batch, once for each token that did.
    pub fn experts(&self, layer: ExpertLayer) -> impl Iterator<Item = ExpertId> + '_ {
        let latest = self.rows.get(layer).into_iter().flat_map(|[rows, _]| &rows.experts);
        latest.map(|&expert| ExpertId(usize::from(expert)))
    }
}

impl Rows {
    fn fill(&mut self, routing: &[i32], token_count: usize) {
        let used = routing.len() / token_count.max(1);
        self.token_count = token_count;
        self.count = token_count.min(ROWS_MAX);
        self.experts.clear();
        for row in 0..self.count {
            let token = row * token_count / self.count;
            self.experts.extend(routing[token * used..][..used].iter().map(|&expert| expert as u16));
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn experts(&self) -> &[u16] {
        &self.experts
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u16]> {
        let used = self.experts.len() / self.count.max(1);
        self.experts.chunks(used.max(1))
    }
}
