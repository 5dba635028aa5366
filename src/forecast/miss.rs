//! How many of the experts that a token uses are not in RAM, for every number of slots.

/// Expected misses per token, by the number of slots that a layer's experts have.
///
/// It is the curve of a cache that holds the experts used most: it falls from the number used, with no slots, to 0,
/// with a slot for every expert, and each further slot is worth no more than the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct MissCurve {
    /// `misses[slots]`.
    misses: Vec<f64>,
    /// Experts that a token uses.
    used: f64,
}

/// The prior: of n experts in a layer, a cache with room for a share x of them misses about e^(-k·x) of the uses, where
/// k = (n/8)^0.7. That is what the default policy reached on recorded text: k was 4 with 64 experts, and 7 to 8 with
/// 128, whether 2 or 6 of them were used; for 8 experts, published hit rates say 1. More experts than those are not
/// assumed to be more lopsided.
const PRIOR_EXPERTS: f64 = 8.0;
const PRIOR_POWER: f64 = 0.7;
const PRIOR_STEEPNESS_MAX: f64 = 8.0;

impl MissCurve {
    /// The curve of experts with these probabilities, or counts, of being used by a token that uses `used` of them.
    /// `None` unless they are finite, not negative, not all zero, and at least `used` in number.
    pub fn from_frequencies(frequencies: &[f64], used: usize) -> Option<Self> {
        let sum: f64 = frequencies.iter().sum();
        let sane = frequencies.iter().all(|frequency| frequency.is_finite() && *frequency >= 0.0);
        let some = sum.is_finite() && sum > 0.0 && (1..=frequencies.len()).contains(&used);
        if !(sane && some) {
            return None;
        }
        // An expert that was never seen may still be needed, when fewer were seen than a token uses.
        const UNSEEN: f64 = 1e-9;
        let mut probabilities: Vec<f64> = frequencies.iter().map(|frequency| frequency / sum + UNSEEN).collect();
        probabilities.sort_by(|one, other| other.total_cmp(one));
        cap(&mut probabilities, used as f64);
        // Summed from the least used, so that rounding keeps the curve convex and its end exactly 0.
        let mut misses = vec![0.0; probabilities.len() + 1];
        for slots in (0..probabilities.len()).rev() {
            misses[slots] = misses[slots + 1] + probabilities[slots];
        }
        Some(Self { misses, used: used as f64 })
    }

    /// What is assumed of experts that were never observed. `None` when fewer exist than are used.
    pub fn prior(expert_count: usize, used: usize) -> Option<Self> {
        let count = expert_count as f64;
        let steepness = (count / PRIOR_EXPERTS).powf(PRIOR_POWER).min(PRIOR_STEEPNESS_MAX);
        let frequencies: Vec<f64> = (0..expert_count).map(|rank| (-steepness * rank as f64 / count).exp()).collect();
        Self::from_frequencies(&frequencies, used)
    }

    /// Expected misses with this many slots.
    pub fn misses(&self, slots: usize) -> f64 {
        self.misses[slots.min(self.slot_count())]
    }

    /// Experts in the layer.
    pub fn slot_count(&self) -> usize {
        self.misses.len() - 1
    }

    /// Experts that a token uses.
    pub fn used(&self) -> f64 {
        self.used
    }

    /// The same experts with more or fewer misses, as measured, for any number of slots.
    pub(super) fn scaled(&self, factor: f64) -> Self {
        Self { misses: self.misses.iter().map(|misses| misses * factor).collect(), used: self.used }
    }

    /// A convex curve of few straight pieces that lies on or below this one: each piece is `(slots, misses saved by
    /// each of them)`. Exact when the experts are no more than the pieces.
    pub(crate) fn pieces(&self, piece_count: usize) -> Vec<(f64, f64)> {
        let last = self.slot_count() - 1;
        // Tangents at slots spread evenly, from the first to the last.
        let mut touched: Vec<usize> = match piece_count.min(last + 1) {
            0 | 1 => vec![last],
            count => (0..count).map(|piece| piece * last / (count - 1)).collect(),
        };
        touched.dedup();
        let slope = |slot: usize| self.misses[slot] - self.misses[slot + 1];
        let mut start = 0.0;
        let mut pieces = Vec::with_capacity(touched.len());
        for (index, &slot) in touched.iter().enumerate() {
            let end = match touched.get(index + 1) {
                None => self.slot_count() as f64,
                // Where this tangent meets the next; where they are parallel, anywhere between does.
                Some(&next) if slope(slot) - slope(next) <= 1e-12 * self.misses[0] => next as f64,
                Some(&next) => {
                    let height = |slot: usize| self.misses[slot] + slope(slot) * slot as f64;
                    ((height(slot) - height(next)) / (slope(slot) - slope(next))).clamp(start, next as f64)
                }
            };
            pieces.push((end - start, slope(slot)));
            start = end;
        }
        pieces
    }
}

/// Scales probabilities, largest first, to a sum, none above 1: no token uses an expert twice.
fn cap(probabilities: &mut [f64], sum: f64) {
    for certain in 0..probabilities.len() {
        let rest: f64 = probabilities[certain..].iter().sum();
        let scale = if rest > 0.0 { (sum - certain as f64) / rest } else { 0.0 };
        if probabilities[certain] * scale <= 1.0 {
            probabilities[certain..].iter_mut().for_each(|probability| *probability *= scale);
            return;
        }
        probabilities[certain] = 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Random;

    fn assert_shape(curve: &MissCurve, used: usize) {
        assert_eq!(curve.used(), used as f64);
        assert!((curve.misses(0) - used as f64).abs() < 1e-9, "{curve:?}");
        assert_eq!(curve.misses(curve.slot_count()), 0.0);
        let gains: Vec<f64> = curve.misses.windows(2).map(|pair| pair[0] - pair[1]).collect();
        assert!(gains.iter().all(|gain| (0.0..=1.0 + 1e-9).contains(gain)), "{gains:?}");
        assert!(gains.windows(2).all(|pair| pair[0] >= pair[1] - 1e-9), "{gains:?}");
    }

    #[test]
    fn every_curve_falls_from_the_number_used_to_nothing_ever_more_slowly() {
        let mut random = Random::new(1);
        for _ in 0..2000 {
            let count = 1 + random.below(40);
            let used = 1 + random.below(count);
            let frequencies: Vec<f64> = (0..count).map(|_| random.below(1000) as f64).collect();
            if let Some(curve) = MissCurve::from_frequencies(&frequencies, used) {
                assert_shape(&curve, used);
            }
            assert_shape(&MissCurve::prior(count, used).unwrap(), used);
        }
    }

    #[test]
    fn experts_that_always_run_are_capped_at_certainty() {
        for frequencies in [[98.0, 1.0, 1.0], [7.0, 0.0, 0.0]] {
            let curve = MissCurve::from_frequencies(&frequencies, 2).unwrap();
            assert!(curve.misses.iter().zip([2.0, 1.0, 0.5, 0.0]).all(|(one, other)| (one - other).abs() < 1e-9));
        }
    }

    #[test]
    fn frequencies_that_make_no_sense_are_refused() {
        for frequencies in [&[][..], &[0.0, 0.0], &[f64::NAN, 1.0], &[-1.0, 2.0], &[f64::INFINITY, 1.0], &[1.0]] {
            assert_eq!(MissCurve::from_frequencies(frequencies, 2), None, "{frequencies:?}");
        }
        assert_eq!(MissCurve::prior(4, 0), None);
    }

    /// Hits that the default policy had on recorded routing (`make replay`), as a share of the uses: experts, used,
    /// share cached.
    #[test]
    fn the_prior_comes_close_to_recorded_routing() {
        let recorded = [
            (64, 8, 0.10, 0.346),
            (64, 8, 0.25, 0.618),
            (64, 8, 0.50, 0.847),
            (128, 6, 0.10, 0.588),
            (128, 6, 0.25, 0.848),
            (128, 6, 0.50, 0.966),
            (128, 2, 0.10, 0.627),
            (128, 2, 0.25, 0.799),
        ];
        for (count, used, share, hits) in recorded {
            let curve = MissCurve::prior(count, used).unwrap();
            let expected = 1.0 - curve.misses((share * count as f64).round() as usize) / used as f64;
            assert!((expected - hits).abs() < 0.12, "{used} of {count}, {share}: {expected}, not {hits}");
        }
    }

    #[test]
    fn few_pieces_stay_below_the_curve_and_many_are_the_curve() {
        let mut random = Random::new(2);
        for _ in 0..500 {
            let count = 1 + random.below(60);
            let frequencies: Vec<f64> = (0..count).map(|_| 1.0 + random.below(50) as f64).collect();
            let curve = MissCurve::from_frequencies(&frequencies, 1 + random.below(count)).unwrap();
            for piece_count in [1, 2, 5, 12, count] {
                let pieces = curve.pieces(piece_count);
                assert!(pieces.len() <= piece_count.max(1));
                assert!((pieces.iter().map(|piece| piece.0).sum::<f64>() - count as f64).abs() < 1e-6);
                for slots in 0..=count {
                    // Measured from the end, where both are 0.
                    let (mut left, mut below) = ((count - slots) as f64, 0.0);
                    for &(width, slope) in pieces.iter().rev() {
                        below += slope * width.min(left);
                        left -= width.min(left);
                    }
                    let exact = curve.misses(slots);
                    assert!(below <= exact + 1e-6, "{pieces:?} at {slots}: {below} above {exact}");
                    if piece_count >= count {
                        assert!((below - exact).abs() < 1e-6, "{pieces:?} at {slots}: {below}, not {exact}");
                    }
                }
            }
        }
    }
}
