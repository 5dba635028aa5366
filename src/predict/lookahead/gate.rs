//! A layer's router, as the file has it.

use crate::gguf::HyperParameters;
use crate::index::ExpertId;

use super::floats::{Matrix, Source};
use super::score::{Activation, Groups, Ranking, Score};

/// Weights and biases of a router.
#[derive(Debug)]
pub struct Gate {
    /// One row for each expert.
    weights: Matrix,
    /// Added to the logits; empty when there is none.
    logit_bias: Vec<f32>,
    /// Added for the selection alone; empty when there is none.
    choice_bias: Vec<f32>,
    groups: Option<Groups>,
    /// The ways in which it may select, the likeliest first.
    scores: Vec<Score>,
}

impl Gate {
    /// Reads the router of a layer. `None` when there is none in a form that is understood.
    pub fn read(source: &Source<'_>, layer: u32, hyper: &HyperParameters) -> Option<Self> {
        let tensor = source.find(&format!("blk.{layer}.ffn_gate_inp.weight"))?;
        let weights = source.matrix(tensor).filter(|weights| weights.row_count() > 0)?;
        let bias = |name: &str| {
            let bias = source.vector(source.find(&format!("blk.{layer}.{name}"))?)?;
            (bias.len() == weights.row_count()).then_some(bias)
        };
        let logit_bias = bias("ffn_gate_inp.bias").unwrap_or_default();
        // Most converters write the suffix, some do not.
        let choice_bias = bias("exp_probs_b.bias").or_else(|| bias("exp_probs_b")).unwrap_or_default();
        let groups = Groups { count: hyper.expert_group_count as usize, used: hyper.expert_group_used_count as usize };
        let is_grouped = groups.count > 1 && groups.used > 0 && groups.count <= weights.row_count();
        let groups = is_grouped.then_some(groups);
        Some(Self::new(weights, logit_bias, choice_bias, groups, Activation::of_gguf(hyper.expert_gating_func)))
    }

    /// A router of these parts; `likely` is the activation that the file names.
    pub fn new(
        weights: Matrix,
        logit_bias: Vec<f32>,
        choice_bias: Vec<f32>,
        groups: Option<Groups>,
        likely: Option<Activation>,
    ) -> Self {
        let scores = Score::possible(!choice_bias.is_empty(), groups.is_some(), likely);
        Self { weights, logit_bias, choice_bias, groups, scores }
    }

    /// Elements of its input.
    pub fn width(&self) -> usize {
        self.weights.width()
    }

    /// How many experts it knows.
    pub fn expert_count(&self) -> usize {
        self.weights.row_count()
    }

    /// The ways in which it may select, the likeliest first.
    pub fn scores(&self) -> &[Score] {
        &self.scores
    }

    /// What it gives an input of [`Self::width`] elements.
    pub fn logits(&self, input: &[f32], logits: &mut Vec<f32>) {
        self.weights.multiply(input, logits);
        logits.iter_mut().zip(&self.logit_bias).for_each(|(logit, bias)| *logit += bias);
    }

    /// The experts that it selects by these logits, with their scores, the surest first.
    pub fn select<'a>(
        &self,
        score: Score,
        logits: &[f32],
        used: usize,
        ranking: &'a mut Ranking,
    ) -> &'a [(ExpertId, f32)] {
        score.rank(logits, &self.choice_bias, self.groups, used, ranking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;
    use crate::common::gguf_writer::GgufWriter;
    use crate::gguf::Gguf;

    #[test]
    fn a_selection_bias_is_found_with_and_without_its_suffix() {
        let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let directory = TestDirectory::new();
        let path = directory.path().join("model.gguf");
        let weights = floats(&[1.0, 0.0, 0.0, 1.0, -1.0, 0.0]);
        GgufWriter::new()
            .text("general.architecture", "moe")
            .u32("moe.expert_gating_func", 2)
            .tensor("blk.0.ffn_gate_inp.weight", 0, &[2, 3], weights.clone())
            .tensor("blk.0.ffn_gate_inp.bias", 0, &[3], floats(&[0.0, 0.0, 9.0]))
            .tensor("blk.1.ffn_gate_inp.weight", 0, &[2, 3], weights.clone())
            .tensor("blk.1.exp_probs_b.bias", 0, &[3], floats(&[0.0, 2.0, 1.5]))
            .tensor("blk.2.ffn_gate_inp.weight", 0, &[2, 3], weights)
            .tensor("blk.2.exp_probs_b", 0, &[3], floats(&[0.0, 2.0, 1.5]))
            .write(&path);
        let gguf = Gguf::open(&[path]).unwrap();
        let source = Source::open(&gguf);
        let (mut logits, mut ranking) = (Vec::new(), Ranking::default());
        let mut chosen = |layer: u32| -> Vec<usize> {
            let gate = Gate::read(&source, layer, gguf.hyper_parameters()).unwrap();
            assert_eq!((gate.width(), gate.expert_count()), (2, 3));
            gate.logits(&[3.0, 1.0], &mut logits);
            gate.select(gate.scores()[0], &logits, 2, &mut ranking).iter().map(|&(expert, _)| expert.0).collect()
        };
        assert_eq!(chosen(0), [2, 0], "a bias of the logits counts");
        assert_eq!(chosen(1), [1, 2], "after the sigmoid another one does");
        assert_eq!(chosen(2), [1, 2], "whatever its name ends in");
        assert!(Gate::read(&source, 3, gguf.hyper_parameters()).is_none());
    }
}
