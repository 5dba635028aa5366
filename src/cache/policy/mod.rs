//! Which expert to give up when a slot is needed.
//!
//! Terms: a *unit* is one expert of one tensor, which is a *layer* to a policy (in a replayed trace, of one layer), numbered `layer * expert_count + expert`. A *pass* is one run through
//! the layers, for one token (decode) or for many (a prompt's batch). A unit is *evictable* while its bytes are
//! in RAM and nobody holds them. Passes run through the layers in order, so for a unit of the layer just
//! computed the next use is a whole pass away, and for one of the next layer it is near.
//!
//! Every pool owns one policy. The policy knows units by number and never touches slots. It also remembers units that
//! are not in RAM: there are few enough for flat arrays. No verb allocates, and none costs more than O(log units).
//! [`Forecast`] is the default; `make replay` compares the policies on recorded routing.

mod forecast;
mod heap;
mod lfu;
mod lrfu;
mod lru;
#[cfg(test)]
mod tests;

pub use forecast::Forecast;
pub use lfu::Lfu;
pub use lrfu::Lrfu;
pub use lru::Lru;

use crate::index::{ExpertId, PolicyLayer, UnitId};

/// The units that exist: `layer_count` layers, in the order in which they are computed, of `expert_count` experts each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tensors that have experts; in a pool of dense tensors, those.
    pub layer_count: usize,
    /// Experts of a layer; of the largest one, should they differ.
    pub expert_count: usize,
}

impl Shape {
    /// How many units there are.
    pub fn unit_count(self) -> usize {
        self.layer_count * self.expert_count
    }

    /// The number of a unit.
    pub fn unit(self, layer: PolicyLayer, expert: ExpertId) -> UnitId {
        debug_assert!(layer.0 < self.layer_count && expert.0 < self.expert_count);
        UnitId(layer.0 * self.expert_count) + expert
    }

    /// The layer of a unit.
    pub fn layer(self, unit: UnitId) -> PolicyLayer {
        PolicyLayer(unit.0 / self.expert_count)
    }

    /// The expert that a unit is of its layer.
    pub fn expert(self, unit: UnitId) -> ExpertId {
        ExpertId(unit.0 % self.expert_count)
    }

    /// All units, in order.
    pub fn units(self) -> impl Iterator<Item = UnitId> {
        (0..self.unit_count()).map(UnitId)
    }
}

/// Where the computation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The number of the pass; a new pass has a larger one.
    pub pass: u64,
    /// The layer that is computed now, among those of [`Shape`].
    pub layer: PolicyLayer,
}

/// How a unit is used in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Tokens in the batch: 1 in a decode step.
    pub token_count: u32,
    /// Those of them that the router sent to this unit, at least 1.
    pub routed_count: u32,
}

impl Use {
    /// The use by a decode step.
    pub const DECODE: Self = Self { token_count: 1, routed_count: 1 };
}

/// An order of eviction.
///
/// The owner says that a unit is in use before it is used, and that it is evictable when it is let go of. So a policy may rank an
/// evictable unit by what it knew when the unit became so.
pub trait Policy: Send + std::fmt::Debug {
    /// The name in tables and logs.
    fn name(&self) -> &'static str;

    /// A unit is used, in RAM or not. Called exactly once per (unit, pass), no later than the start of its layer.
    fn used(&mut self, unit: UnitId, at: Position, usage: Use);

    /// A unit is evictable from now on. Nothing happens when it is already.
    fn set_evictable(&mut self, unit: UnitId);

    /// A unit is not evictable any more: it is held, being read, or gone. Nothing happens when it was not.
    fn set_in_use(&mut self, unit: UnitId);

    /// The evictable unit to evict at this point, `None` when there is none. It stays evictable until it is said to be in use.
    fn victim(&self, at: Position) -> Option<UnitId>;

    /// How much a unit deserves its slot, evictable or not, in RAM or not: of two units of one policy at one position,
    /// the larger value is to be kept. What is about to be read as a speculative prefetch should be worth more than the victim.
    fn score(&self, unit: UnitId, at: Position) -> f64;

    /// What a unit would be worth if its layer uses it with this probability (0 to 1) when its turn comes next, to be
    /// compared with the [`Self::score`] of another. A policy without estimates takes what is foreseen to be worth more
    /// than anything.
    fn predicted_score(&self, unit: UnitId, probability: f32, at: Position) -> f64 {
        let _ = (unit, probability, at);
        f64::INFINITY
    }

    /// How many units are evictable; for tests.
    #[cfg(test)]
    fn evictable_count(&self) -> usize;

    /// Tells what earlier runs know: how often a token uses this unit, 0 to 1. To be called before the first use; a
    /// policy that has no use for it ignores it.
    fn remember(&mut self, unit: UnitId, uses_per_token: f32) {
        let _ = (unit, uses_per_token);
    }
}

/// The policies that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// [`Lru`]
    Lru,
    /// [`Lfu`]
    Lfu,
    /// [`Lrfu`]
    Lrfu,
    /// [`Forecast`], the default.
    Forecast,
}

impl PolicyKind {
    /// All of them, the default last.
    pub const ALL: [Self; 4] = [Self::Lru, Self::Lfu, Self::Lrfu, Self::Forecast];

    /// What a pool uses unless told otherwise.
    pub const DEFAULT: Self = Self::Forecast;

    /// A new policy without any history.
    pub fn build(self, shape: Shape) -> Box<dyn Policy> {
        match self {
            Self::Lru => Box::new(Lru::new(shape)),
            Self::Lfu => Box::new(Lfu::new(shape)),
            Self::Lrfu => Box::new(Lrfu::new(shape)),
            Self::Forecast => Box::new(Forecast::new(shape)),
        }
    }
}
