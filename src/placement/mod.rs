//! Where every weight is, over GPU, RAM and drive: one function from a model, a machine and what the host has fixed.
//!
//! A session carries a [`Placement`] out, the log and the statistics tell it, its prediction is a simulation of it, and
//! `hypura plan` prints the one that a session would find. What is streamed at all, [`crate::plan`] decides when the
//! model is loaded. How the memory that is left is divided is found here, twice: by rule, and by a linear program that is
//! refined greedily (`solver`). The simulated pass says which of the two runs.

mod allocate;
mod explain;
mod linear;
mod relax;
mod solver;

#[cfg(test)]
mod solver_tests;

pub use allocate::Allocation;

use typed_index_collections::TiVec;

use crate::error::Result;
use crate::forecast::{Item, Learned, Prediction, Problem, Residency, TierBytes};
use crate::index::PoolId;
use crate::plan::{Mode, SlotClass, bytes_for_tables, distribute, in_gigabytes, minimum_bytes, tables_claim};

/// A model on a machine, whose streamed weights live in pools of slots.
#[derive(Clone, Debug)]
pub struct Task {
    /// How the model runs.
    pub mode: Mode,
    /// Model and machine in figures, before earlier runs correct them.
    pub problem: Problem,
    /// What earlier runs taught.
    pub learned: Learned,
    /// By item of the problem: which pools it lives in.
    pub allocation: Vec<Allocation>,
    /// The pools.
    pub classes: TiVec<PoolId, SlotClass>,
    /// Bytes of tables, of which rows are looked up.
    pub table_bytes: u64,
    /// Memory for the routers that look ahead, in bytes; 0 where none does.
    pub router_bytes: u64,
    /// Memory for the pairs of a usage profile, in bytes; 0 where none are counted.
    pub pairs_bytes: u64,
}

/// Who divided the memory among the pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divided {
    /// Weights that every token uses first, then the same share of each pool of experts.
    ByRule,
    /// The linear program, refined: the simulated pass is faster than the rule's.
    BySolver,
}

impl Divided {
    /// For statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::ByRule => "rule",
            Self::BySolver => "solver",
        }
    }
}

/// Where everything is, and what that will do.
#[derive(Clone, Debug)]
pub struct Placement {
    /// How the model runs.
    pub mode: Mode,
    /// Model and machine, before earlier runs correct them; with the ring that this placement has.
    pub problem: Problem,
    /// What earlier runs taught.
    pub learned: Learned,
    /// By item.
    pub residencies: Vec<Residency>,
    /// The same, in bytes.
    pub tiers: TierBytes,
    /// Slots of each pool.
    pub slots: TiVec<PoolId, usize>,
    /// Bytes of all slots.
    pub pool_bytes: u64,
    /// RAM for rows of tables, in bytes.
    pub rows_bytes: u64,
    /// Whether routers look ahead.
    pub looks_ahead: bool,
    /// Whether the usage profile counts pairs.
    pub counts_pairs: bool,
    /// RAM for all weights on the host, streamed or not, in bytes.
    pub ram_bytes: u64,
    /// Who divided them.
    pub divided: Divided,
    /// What the simulated pass says.
    pub prediction: Prediction,
}

impl Task {
    /// Places everything, with so many bytes for what is streamed.
    ///
    /// # Errors
    /// `Budget` when that is too little; the message names what would do.
    pub fn place(&self, budget_bytes: u64) -> Result<Placement> {
        let mut corrected = self.corrected();
        let ram_bytes = self.fixed_bytes().saturating_add(budget_bytes);
        let (looks_ahead, budget_bytes) = self.spare(self.router_bytes, budget_bytes);
        if !looks_ahead {
            tracing::info!("routers would take too much of {}: experts are not foreseen", in_gigabytes(budget_bytes));
        }
        let (has_room, budget_bytes) = self.spare(if looks_ahead { self.pairs_bytes } else { 0 }, budget_bytes);
        let rows_bytes = bytes_for_tables(budget_bytes, self.table_bytes, &self.classes)?;
        let (slots, divided) = self.divide_corrected(&mut corrected, budget_bytes - rows_bytes)?;
        let residencies = allocate::residencies(&mut corrected, self, &slots);
        let bytes = slots.iter().zip(&self.classes).map(|(&count, class)| count as u64 * class.slot_bytes);
        Ok(Placement {
            mode: self.mode,
            tiers: corrected.tiers(&residencies),
            prediction: self.learned.predict(&corrected, &residencies),
            problem: Problem { dense_ring_bytes: corrected.dense_ring_bytes, ..self.problem.clone() },
            learned: self.learned,
            pool_bytes: bytes.sum(),
            rows_bytes,
            looks_ahead,
            counts_pairs: looks_ahead && has_room,
            ram_bytes,
            residencies,
            slots,
            divided,
        })
    }

    /// Only the slots of each pool, as [`Task::place`] finds them, for a budget that has changed. One below the smallest that works
    /// is taken for that.
    pub fn divide(&self, budget_bytes: u64) -> Result<TiVec<PoolId, usize>> {
        let budget_bytes = budget_bytes.max(minimum_bytes(&self.classes));
        Ok(self.divide_corrected(&mut self.corrected(), budget_bytes)?.0)
    }

    fn divide_corrected(&self, corrected: &mut Problem, budget_bytes: u64) -> Result<(TiVec<PoolId, usize>, Divided)> {
        let rule = distribute(budget_bytes, &self.classes)?;
        Ok(match solver::better_than(&rule, self, corrected, budget_bytes) {
            Some(slots) => (slots, Divided::BySolver),
            None => (rule, Divided::ByRule),
        })
    }

    /// Takes the memory of what looks ahead off a budget, or says that it would take too much of it.
    fn spare(&self, bytes: u64, budget_bytes: u64) -> (bool, u64) {
        /// Slots foresee nothing, but are always of use.
        const SHARE: u64 = 8;
        let least_bytes = minimum_bytes(&self.classes) + tables_claim(self.table_bytes).0;
        let has_room = bytes <= budget_bytes / SHARE && bytes <= budget_bytes.saturating_sub(least_bytes);
        (has_room, if has_room { budget_bytes - bytes } else { budget_bytes })
    }

    /// Bytes on the host that are not streamed.
    fn fixed_bytes(&self) -> u64 {
        let is_fixed = |(item, held): &(&Item, &Allocation)| !item.is_elsewhere && **held == Allocation::Fixed;
        self.problem.items.iter().zip(&self.allocation).filter(is_fixed).map(|(item, _)| item.bytes()).sum()
    }

    fn corrected(&self) -> Problem {
        let mut corrected = self.problem.clone();
        self.learned.correct(&mut corrected);
        corrected
    }
}
