//! How a router's choices follow from its logits.
//!
//! Softmax, sigmoid and the square root of softplus keep the order of the logits, so they make no difference by themselves. They do
//! where a bias is added to them for the selection alone, and where experts are chosen from the best groups, since sums of two are compared
//! then.

use crate::index::ExpertId;

/// What is done to the logits before they are selected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    Sigmoid,
    Softmax,
    SqrtSoftplus,
}

/// Experts lie in `count` groups of equal size, and are chosen from the `used` best ones: those with the largest sums of two scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    pub count: usize,
    pub used: usize,
}

/// A way to select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Score {
    pub activation: Activation,
    /// Whether the selection bias is added.
    pub is_biased: bool,
    /// Whether only the best groups count.
    pub is_grouped: bool,
}

/// What [`Score::rank`] works with, kept from one use to the next.
#[derive(Debug, Default)]
pub struct Ranking {
    scores: Vec<f32>,
    groups: Vec<(usize, f32)>,
    ranked: Vec<(ExpertId, f32)>,
}

impl Activation {
    const ALL: [Self; 4] = [Self::Sigmoid, Self::Softmax, Self::SqrtSoftplus, Self::Identity];

    /// By the number that GGUF has for it under `expert_gating_func`. The third one chooses by the logits, and weighs the chosen ones.
    pub fn of_gguf(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Softmax),
            2 => Some(Self::Sigmoid),
            3 => Some(Self::Identity),
            4 => Some(Self::SqrtSoftplus),
            _ => None,
        }
    }

    fn apply(self, values: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Sigmoid => values.iter_mut().for_each(|value| *value = 1.0 / (1.0 + (-*value).exp())),
            Self::Softmax => {
                let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                values.iter_mut().for_each(|value| *value = (*value - largest).exp());
                let sum: f32 = values.iter().sum();
                values.iter_mut().for_each(|value| *value /= sum);
            }
            // Softplus of a large value is the value: its exponential would overflow.
            Self::SqrtSoftplus => values.iter_mut().for_each(|value| {
                *value = if *value > 20.0 { *value } else { value.exp().ln_1p() }.sqrt();
            }),
        }
    }
}

impl Score {
    /// Every way that may select otherwise than another, the likeliest first: the file's activation, with all that the file has.
    pub fn possible(has_bias: bool, has_groups: bool, likely: Option<Activation>) -> Vec<Self> {
        let plain = Self { activation: Activation::Identity, is_biased: false, is_grouped: false };
        let mut scores = Vec::new();
        for (is_biased, is_grouped) in [(true, true), (true, false), (false, true)] {
            if (is_biased && !has_bias) || (is_grouped && !has_groups) {
                continue;
            }
            let others = Activation::ALL.into_iter().filter(|&activation| Some(activation) != likely);
            let activations = likely.into_iter().chain(others);
            scores.extend(activations.map(|activation| Self { activation, is_biased, is_grouped }));
        }
        scores.push(plain);
        scores
    }

    /// The experts that a token with these logits uses, with their scores, the surest first.
    pub fn rank<'a>(
        self,
        logits: &[f32],
        bias: &[f32],
        groups: Option<Groups>,
        used: usize,
        ranking: &'a mut Ranking,
    ) -> &'a [(ExpertId, f32)] {
        let Ranking { scores, groups: best_groups, ranked } = ranking;
        scores.clear();
        scores.extend_from_slice(logits);
        self.activation.apply(scores);
        if self.is_biased {
            scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
        if let Some(groups) = groups.filter(|_| self.is_grouped) {
            keep_best_groups(scores, groups, best_groups);
        }
        ranked.clear();
        ranked.extend(scores.iter().enumerate().map(|(expert, &score)| (ExpertId(expert), score)));
        keep_best(ranked, used);
        ranked
    }
}

/// Leaves the experts of other groups without a chance.
fn keep_best_groups(scores: &mut [f32], groups: Groups, best: &mut Vec<(usize, f32)>) {
    let size = scores.len() / groups.count;
    if size == 0 {
        return;
    }
    best.clear();
    best.extend(scores.chunks(size).map(sum_of_two_best).enumerate());
    keep_best(best, groups.used);
    for (group, scores) in scores.chunks_mut(size).enumerate() {
        if best.iter().all(|&(kept, _)| kept != group) {
            scores.fill(f32::NEG_INFINITY);
        }
    }
}

fn sum_of_two_best(scores: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &score in scores {
        if score > first {
            (first, second) = (score, first);
        } else if score > second {
            second = score;
        }
    }
    if scores.len() < 2 { first } else { first + second }
}

/// Sorts the best ones to the front and drops the others.
fn keep_best<Index: Copy + Ord>(ranked: &mut Vec<(Index, f32)>, count: usize) {
    let better = |one: &(Index, f32), other: &(Index, f32)| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0));
    if count < ranked.len() {
        ranked.select_nth_unstable_by(count, better);
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(better);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(score: Score, logits: &[f32], bias: &[f32], groups: Option<Groups>, used: usize) -> Vec<usize> {
        let mut ranking = Ranking::default();
        score.rank(logits, bias, groups, used, &mut ranking).iter().map(|&(expert, _)| expert.0).collect()
    }

    fn biased(activation: Activation) -> Score {
        Score { activation, is_biased: true, is_grouped: false }
    }

    #[test]
    fn without_bias_and_groups_only_the_logits_count() {
        let plain = Score::possible(false, false, Some(Activation::Sigmoid));
        assert_eq!(plain.len(), 1);
        assert_eq!(chosen(plain[0], &[3.0, 1.0, 4.0], &[], None, 2), [2, 0]);
        assert_eq!(chosen(plain[0], &[3.0, 1.0], &[], None, 5), [0, 1], "there are no more");
    }

    /// Logits and biases of which every activation makes another order.
    #[test]
    fn a_bias_is_added_to_what_the_activation_gives() {
        let (logits, bias) = ([4.0, 2.0, 1.0, -1.0], [0.0, 0.2, 0.9, 1.6]);
        // 4, 2.2, 1.9, 0.6
        assert_eq!(chosen(biased(Activation::Identity), &logits, &bias, None, 4), [0, 1, 2, 3]);
        // 0.982, 1.081, 1.631, 1.869
        assert_eq!(chosen(biased(Activation::Sigmoid), &logits, &bias, None, 4), [3, 2, 1, 0]);
        // 0.840, 0.314, 0.942, 1.606
        assert_eq!(chosen(biased(Activation::Softmax), &logits, &bias, None, 4), [3, 2, 0, 1]);
        // 2.004, 1.658, 2.046, 2.160
        assert_eq!(chosen(biased(Activation::SqrtSoftplus), &logits, &bias, None, 4), [3, 2, 0, 1]);
        // 2.004, 1.658, 2.046, 2.060: where softmax has the last one far ahead
        assert_eq!(chosen(biased(Activation::SqrtSoftplus), &logits, &[0.1, 0.2, 0.0, 0.0], None, 2), [0, 1]);
    }

    #[test]
    fn activations_have_their_known_values() {
        for (activation, known) in [
            (Activation::Identity, [0.0, 1.0]),
            (Activation::Sigmoid, [0.5, 0.731_058_6]),
            (Activation::Softmax, [0.268_941_4, 0.731_058_6]),
            (Activation::SqrtSoftplus, [0.832_554_6, 1.145_976_4]),
        ] {
            let mut values = [0.0, 1.0];
            activation.apply(&mut values);
            assert!(values.iter().zip(known).all(|(value, known)| (value - known).abs() < 1e-5), "{activation:?}");
        }
        let mut large = [100.0, -100.0];
        Activation::SqrtSoftplus.apply(&mut large);
        assert!(large[0] == 10.0 && (0.0..1e-10).contains(&large[1]), "nothing overflows: {large:?}");
        let numbers = [1, 2, 3, 4, 5].map(Activation::of_gguf);
        assert_eq!(numbers[..2], [Some(Activation::Softmax), Some(Activation::Sigmoid)]);
        assert_eq!(numbers[2..], [Some(Activation::Identity), Some(Activation::SqrtSoftplus), None]);
    }

    #[test]
    fn experts_come_from_the_groups_with_the_largest_sums_of_two() {
        let groups = Some(Groups { count: 3, used: 1 });
        let grouped = Score { activation: Activation::Identity, is_biased: false, is_grouped: true };
        let logits = [9.0, 0.0, 5.0, 6.0, 1.0, 2.0];
        assert_eq!(chosen(grouped, &logits, &[], groups, 2), [3, 2], "9 + 0 is less than 5 + 6");
        let two = Some(Groups { count: 3, used: 2 });
        assert_eq!(chosen(grouped, &logits, &[], two, 2), [0, 3]);
        assert_eq!(chosen(Score { is_grouped: false, ..grouped }, &logits, &[], two, 2), [0, 3]);
        // The sigmoids of 9 and 0 sum to 1.5, those of 5 and 6 to 2.
        let by_sigmoid = Score { activation: Activation::Sigmoid, ..grouped };
        assert_eq!(chosen(by_sigmoid, &[9.0, 0.0, 2.0, 2.5], &[], Some(Groups { count: 2, used: 1 }), 1), [3]);
        assert_eq!(chosen(grouped, &[9.0, 0.0, 2.0, 2.5], &[], Some(Groups { count: 2, used: 1 }), 1), [0]);
    }

    #[test]
    fn the_files_own_way_comes_first_and_each_way_once() {
        let scores = Score::possible(true, true, Some(Activation::SqrtSoftplus));
        assert_eq!(scores[0], Score { activation: Activation::SqrtSoftplus, is_biased: true, is_grouped: true });
        assert_eq!(scores.len(), 13);
        assert!(scores.iter().enumerate().all(|(index, score)| !scores[..index].contains(score)));
    }
}
