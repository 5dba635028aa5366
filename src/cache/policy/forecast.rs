//! Evicts what is likely to be used last, by an estimate of when each unit comes next.
//!
//! *Estimate.* The probability that the next token uses a unit is a weighted sum of three averages of its past uses:
//! one that forgets within a few tokens (text stays with its subject), one over some dozen tokens, and one over some
//! hundred (popular experts). The wait for the next use is then `1 / p - 1` tokens, if p stays, and the part of a pass
//! until the layer of the unit is reached.
//!
//! *Order.* The three averages shrink at different rates, so the order of two units changes with time and no heap stays
//! valid. But of units that had nearly the same longer averages when they were last used, the one used longest ago is
//! the least likely at any time, and of those as likely the one used just now has the longest way to go. So evictable
//! units are kept in *classes* of such, in the order in which they became so, and the victim is the worst among the first and the
//! last of each class, estimated exactly.

use typed_index_collections::TiVec;

use super::{Policy, Position, Shape, Use};
use crate::cache::list::{Links, List};
use crate::index::{PolicyLayer, UnitId};

/// Tokens after which a use counts half, for each average.
pub(super) const HALF_LIFE_TOKENS: [f64; AVERAGES] = [1.0, 16.0, 64.0];

/// The weight of each average in the estimate; their sum is the estimate for a unit that every token uses.
pub(super) const WEIGHT: [f32; AVERAGES] = [0.25, 0.5, 0.25];

const AVERAGES: usize = 3;

/// As how many tokens a prompt's batch counts at most. A long prompt says less about the tokens that follow than its
/// length would have it, and uses most experts: it must not wipe out what is known.
pub(super) const PROMPT_TOKENS_MAX: u32 = 8;

/// Bounds of the estimated probability: a unit never seen is not worthless, and nothing is certain.
const PROBABILITY_MIN: f32 = 1e-6;
const PROBABILITY_MAX: f32 = 0.999;

/// Classes by the longer averages, with this many to a factor of two: the units of one differ by 4%.
const CLASSES_PER_OCTAVE: f32 = 16.0;
const CLASSES: usize = 128;

/// Ages, in tokens, for which decay is tabulated; older units are computed.
const AGES: usize = 512;

const NOT_EVICTABLE: u8 = u8::MAX;

/// See the module.
#[derive(Debug)]
pub struct Forecast {
    shape: Shape,
    /// By unit.
    histories: TiVec<UnitId, History>,
    /// The tokens so far, a prompt's batch counting at most [`PROMPT_TOKENS_MAX`].
    clock: u32,
    /// The latest pass, and as how many tokens it counts.
    pass: Option<u64>,
    pass_tokens: u32,
    /// By age in tokens: what is left of each average.
    decay: Vec<[f32; AVERAGES]>,
    /// By unit: its class while it is evictable.
    class: TiVec<UnitId, u8>,
    links: Links<UnitId>,
    classes: Vec<List<UnitId>>,
    /// By class: whether there is a unit in it.
    occupied: u128,
}

/// The past of a unit.
#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// The averages, uses per token, as of the last use.
    averages: [f32; AVERAGES],
    /// The clock at the last use.
    used_at: u32,
}

impl Forecast {
    /// A policy that knows nothing yet.
    pub fn new(shape: Shape) -> Self {
        let count = shape.unit_count();
        Self {
            shape,
            histories: vec![History::default(); count].into(),
            clock: 0,
            pass: None,
            pass_tokens: 0,
            decay: (0..AGES as u32).map(exact_decay).collect(),
            class: vec![NOT_EVICTABLE; count].into(),
            links: Links::new(count),
            classes: (0..CLASSES).map(|_| List::new()).collect(),
            occupied: 0,
        }
    }

    /// The probability that the next token uses a unit that `missed_tokens` have not used since the last that did.
    fn probability(&self, history: &History, missed_tokens: u32) -> f32 {
        let left = self.decay(missed_tokens);
        let sum: f32 = (0..AVERAGES).map(|index| WEIGHT[index] * history.averages[index] * left[index]).sum();
        sum.clamp(PROBABILITY_MIN, PROBABILITY_MAX)
    }

    /// The expected time until a unit is used, in tokens.
    fn wait(&self, unit: UnitId, at: Position) -> f32 {
        let layer = self.shape.layer(unit);
        let history = &self.histories[unit];
        let is_ahead = layer > at.layer;
        if is_ahead && self.pass == Some(at.pass) && history.used_at == self.clock {
            return self.wait_with(1.0, layer, at); // announced: this is certain
        }
        // Units that are still ahead had no chance in this pass yet.
        let unasked_tokens = if is_ahead { self.pass_tokens } else { 0 };
        let missed_tokens = (self.clock - history.used_at).saturating_sub(unasked_tokens);
        self.wait_with(self.probability(history, missed_tokens), layer, at)
    }

    /// The expected time until a unit of a layer is used, when every token uses it with this probability.
    fn wait_with(&self, probability: f32, layer: PolicyLayer, at: Position) -> f32 {
        // A demand may come from beyond the layers that this policy knows: such a position counts as their end.
        let here = at.layer.min(PolicyLayer(self.shape.layer_count));
        let layers_until = if layer > here { layer - here } else { layer + self.shape.layer_count - here };
        1.0 / probability - 1.0 + layers_until as f32 / self.shape.layer_count as f32
    }

    fn decay(&self, age: u32) -> [f32; AVERAGES] {
        self.decay.get(age as usize).copied().unwrap_or_else(|| exact_decay(age))
    }

    /// The class of a unit: by what it will be worth once the shortest average has died away.
    fn class_of(history: &History) -> u8 {
        let lasting: f32 = (1..AVERAGES).map(|index| WEIGHT[index] * history.averages[index]).sum();
        let most: f32 = WEIGHT[1..].iter().sum();
        let octaves_below = (most / lasting).log2(); // infinite for a unit never used
        (CLASSES as f32 - 1.0 - octaves_below * CLASSES_PER_OCTAVE).clamp(0.0, CLASSES as f32 - 1.0) as u8
    }
}

/// What is left of each average after `age` tokens without a use.
fn exact_decay(age: u32) -> [f32; AVERAGES] {
    HALF_LIFE_TOKENS.map(|half_life| (-f64::from(age) / half_life).exp2() as f32)
}

impl Policy for Forecast {
    fn name(&self) -> &'static str {
        "forecast"
    }

    fn used(&mut self, unit: UnitId, at: Position, usage: Use) {
        if self.pass != Some(at.pass) {
            self.pass = Some(at.pass);
            self.pass_tokens = usage.token_count.clamp(1, PROMPT_TOKENS_MAX);
            self.clock = self.clock.saturating_add(self.pass_tokens);
        }
        // A batch's uses are taken as spread evenly over it, `rate` to a token.
        let rate = usage.routed_count as f32 / usage.token_count.max(1) as f32;
        let left = self.decay(self.clock - self.histories[unit].used_at);
        let left_by_pass = self.decay(self.pass_tokens);
        let history = &mut self.histories[unit];
        history.used_at = self.clock;
        for index in 0..AVERAGES {
            history.averages[index] = history.averages[index] * left[index] + rate * (1.0 - left_by_pass[index]);
        }
    }

    fn set_evictable(&mut self, unit: UnitId) {
        if self.class[unit] != NOT_EVICTABLE {
            return;
        }
        let class = Self::class_of(&self.histories[unit]);
        self.class[unit] = class;
        self.classes[class as usize].push_back(&mut self.links, unit);
        self.occupied |= 1 << class;
    }

    fn set_in_use(&mut self, unit: UnitId) {
        let class = std::mem::replace(&mut self.class[unit], NOT_EVICTABLE);
        if class == NOT_EVICTABLE {
            return;
        }
        let list = &mut self.classes[class as usize];
        list.remove(&mut self.links, unit);
        if list.front().is_none() {
            self.occupied &= !(1 << class);
        }
    }

    #[cfg(test)]
    fn evictable_count(&self) -> usize {
        self.class.iter().filter(|&&class| class != NOT_EVICTABLE).count()
    }

    fn victim(&self, at: Position) -> Option<UnitId> {
        let mut occupied = self.occupied;
        let mut last: Option<(f32, UnitId)> = None;
        while occupied != 0 {
            let class = &self.classes[occupied.trailing_zeros() as usize];
            occupied &= occupied - 1;
            for unit in [class.front(), class.back()].into_iter().flatten() {
                let wait = self.wait(unit, at);
                if last.is_none_or(|(longest, _)| wait > longest) {
                    last = Some((wait, unit));
                }
            }
        }
        last.map(|(_, unit)| unit)
    }

    fn score(&self, unit: UnitId, at: Position) -> f64 {
        f64::from(1.0 / self.wait(unit, at))
    }

    fn predicted_score(&self, unit: UnitId, probability: f32, at: Position) -> f64 {
        let probability = probability.clamp(PROBABILITY_MIN, PROBABILITY_MAX);
        f64::from(1.0 / self.wait_with(probability, self.shape.layer(unit), at)).max(self.score(unit, at))
    }

    fn remember(&mut self, unit: UnitId, uses_per_token: f32) {
        let history = &mut self.histories[unit];
        history.used_at = self.clock;
        // Only the longest average, and half of it: other texts say what is popular, not what this one is about.
        history.averages[AVERAGES - 1] = uses_per_token.clamp(0.0, 1.0) / 2.0;
    }
}
