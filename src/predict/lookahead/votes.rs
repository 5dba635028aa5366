//! What the rows of a batch want together.

use typed_index_collections::TiVec;

use crate::index::ExpertId;

/// Counts of rows, by expert.
#[derive(Debug, Default)]
pub struct Votes {
    /// By expert: the rows that want it, and its best score among them.
    by_expert: TiVec<ExpertId, (usize, f32)>,
    experts: Vec<ExpertId>,
}

impl Votes {
    /// Nobody wants anything of so many experts.
    pub fn restart(&mut self, expert_count: usize) {
        self.by_expert.clear();
        self.by_expert.resize(expert_count, (0, f32::NEG_INFINITY));
    }

    /// A row wants these, with their scores.
    pub fn add(&mut self, ranked: &[(ExpertId, f32)]) {
        for &(expert, score) in ranked {
            let (rows, best) = &mut self.by_expert[expert];
            *rows += 1;
            *best = best.max(score);
        }
    }

    /// All that are wanted, those that most rows agree on first, then the surest.
    pub fn count(&mut self) -> &[ExpertId] {
        let Self { by_expert, experts } = self;
        experts.clear();
        experts.extend(by_expert.keys().filter(|&expert| by_expert[expert].0 > 0));
        experts.sort_by(|&one, &other| {
            let ((one_rows, one_score), (other_rows, other_score)) = (by_expert[one], by_expert[other]);
            other_rows.cmp(&one_rows).then(other_score.total_cmp(&one_score))
        });
        experts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_comes_first_and_then_the_score() {
        let mut votes = Votes::default();
        for _ in 0..2 {
            votes.restart(4);
            votes.add(&[(ExpertId(0), 3.0), (ExpertId(1), 1.0)]);
            votes.add(&[(ExpertId(2), 5.0), (ExpertId(1), 1.0)]);
            assert_eq!(votes.count(), [1, 2, 0].map(ExpertId));
        }
    }
}
