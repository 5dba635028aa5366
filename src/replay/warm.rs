//! What a warm start is worth: each text of a trace begun cold, and begun with the usage profile that the texts before it
//! left.

use super::simulate::{Outcome, simulate_from};
use super::trace::Trace;
use crate::cache::policy::PolicyKind;
use crate::index::{ExpertLayer, UnitId};
use crate::predict::{Recent, UsageProfile};

/// Generated tokens of each text that count.
pub const WARM_TOKENS: usize = 32;

/// The first tokens of the texts, the first text excepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmStart {
    /// From an empty cache.
    pub cold: Outcome,
    /// From a cache that holds what was hot in the texts before, with a policy that was told.
    pub warm: Outcome,
}

/// Plays the first [`WARM_TOKENS`] generated tokens of each text but the first with `slot_count` slots and the default
/// policy.
/// `None` when there is a single text.
///
/// # Panics
/// When there are no slots.
pub fn warm_start(trace: &Trace, slot_count: usize) -> Option<WarmStart> {
    let decoded = trace.without_prompts();
    let numbers: Vec<u32> = (0..trace.shape.layer_count as u32).collect();
    let mut usage_profile = UsageProfile::new(&numbers, trace.shape.expert_count);
    let mut result: Option<WarmStart> = None;
    for (index, turn) in decoded.passes.chunk_by(|one, other| one.turn == other.turn).enumerate() {
        if index > 0 {
            let passes = turn.iter().take(WARM_TOKENS).cloned().collect();
            let text = Trace { model: trace.model.clone(), shape: trace.shape, passes };
            let mut policy = PolicyKind::DEFAULT.build(trace.shape);
            let cold = simulate_from(&text, slot_count, &mut *policy, &[]);
            let mut policy = PolicyKind::DEFAULT.build(trace.shape);
            let hottest = hottest(&usage_profile, &decoded);
            hottest.iter().for_each(|&(uses_per_token, unit)| policy.remember(unit, uses_per_token));
            let units: Vec<UnitId> = hottest.iter().map(|&(_, unit)| unit).collect();
            let warm = simulate_from(&text, slot_count, &mut *policy, &units);
            let nothing = WarmStart { cold: Outcome::default(), warm: Outcome::default() };
            let sum = result.get_or_insert(nothing);
            (sum.cold, sum.warm) = (sum.cold + cold, sum.warm + warm);
        }
        let mut recent = Recent::default();
        for layer in turn.iter().flat_map(|pass| &pass.layers) {
            let routing: Vec<i32> = layer.experts.iter().map(|used| used.expert.0 as i32).collect();
            usage_profile.observe(&mut recent, ExpertLayer(layer.layer.0), &routing, 1);
        }
    }
    result
}

/// The units that were ever used with the uses per token, the hottest first.
fn hottest(usage_profile: &UsageProfile, trace: &Trace) -> Vec<(f32, UnitId)> {
    let shape = trace.shape;
    let uses = |unit| usage_profile.uses_per_token(ExpertLayer(shape.layer(unit).0), shape.expert(unit));
    let mut units: Vec<(f32, UnitId)> =
        shape.units().filter_map(|unit| Some((uses(unit).filter(|&uses| uses > 0.0)?, unit))).collect();
    units.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    units
}
