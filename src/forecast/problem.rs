//! The placement problem in plain numbers: what must be somewhere, and what the machine offers.
//!
//! An *item* is what is placed as one: a dense tensor, or all experts of one layer. It has *slots*: a dense tensor has
//! one, the experts of a layer have one per expert. A *residency* says where an item is: on a GPU or another machine as a whole, or on the host
//! with some of its slots in memory and the rest on the drive.

use std::sync::Arc;

use super::miss::MissCurve;

/// How a pass, which computes one token, uses an item.
#[derive(Clone, Debug, PartialEq)]
pub enum Usage {
    /// Every byte, once.
    Dense,
    /// A few rows, such as an embedding: room is needed, time is not.
    Lookup,
    /// Rows, for which so many bytes are read when they are needed, in `reads_per_slot` reads.
    Row(u64),
    /// Some of the experts.
    Routed(Arc<MissCurve>),
}

/// What is placed as one.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The layer; `None` outside the layers.
    pub layer: Option<u32>,
    /// What it is, for people: `experts`, `attention`.
    pub role: String,
    /// The tensors behind it, as the caller numbers them.
    pub tensors: Vec<usize>,
    /// Bytes of a slot: of a dense tensor, or of one expert's matrices together.
    pub slot_bytes: u64,
    /// 1, or the number of experts.
    pub slot_count: usize,
    /// Reads that fill a slot: one per matrix.
    pub reads_per_slot: usize,
    /// How a pass uses it.
    pub usage: Usage,
    /// The host or its user put it on a GPU or on another machine, where it stays.
    pub is_elsewhere: bool,
    /// It is another machine.
    pub is_remote: bool,
    /// Whether it may be on the drive.
    pub streamable: bool,
}

impl Item {
    /// All its bytes.
    pub fn bytes(&self) -> u64 {
        self.slot_bytes.saturating_mul(self.slot_count as u64)
    }

    /// Bytes that a pass computes on.
    pub fn used_bytes(&self) -> f64 {
        match &self.usage {
            Usage::Dense => self.slot_bytes as f64,
            Usage::Lookup | Usage::Row(_) => 0.0,
            Usage::Routed(curve) => curve.used() * self.slot_bytes as f64,
        }
    }

    /// Whether its experts are chosen by a router.
    pub fn is_routed(&self) -> bool {
        matches!(self.usage, Usage::Routed(_))
    }
}

/// What the machine offers, and how fast it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Computing on weights in RAM.
    pub cpu_seconds_per_byte: f64,
    /// Computing on weights on a GPU.
    pub gpu_seconds_per_byte: f64,
    /// Computing on weights that another machine has.
    pub remote_seconds_per_byte: f64,
    /// Time per token that the network takes, there and back.
    pub network_seconds: f64,
    /// Copying weights from RAM to a GPU.
    pub upload_seconds_per_byte: f64,
    /// Time per token that no placement changes.
    pub fixed_seconds: f64,
    /// Reading from the drive.
    pub drive_seconds_per_byte: f64,
    /// What a read costs beyond its bytes.
    pub read_overhead_seconds: f64,
}

/// A placement problem; items are in the order in which a pass uses them.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What is to be placed.
    pub items: Vec<Item>,
    /// Where, and how fast.
    pub machine: Machine,
    /// RAM that dense tensors pass through, which depends on the placement.
    pub dense_ring_bytes: u64,
    /// Memory of GPUs that holds copies of experts beside what RAM holds. If there is any, GPUs compute with all experts, and copy those
    /// that are not there for each token.
    pub vram_bytes: u64,
}

/// Where an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// On a GPU, as a whole.
    Gpu,
    /// On another machine, as a whole.
    Remote,
    /// On the host: this many slots in memory, the others on the drive.
    Host {
        /// Slots in RAM or, as copies, in a GPU's memory; the most used experts first.
        slots: usize,
    },
}

/// Bytes in each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierBytes {
    /// On GPUs, by the host's choice and by ours.
    pub gpu: u64,
    /// Of those, copies of experts that come and go.
    pub vram: u64,
    /// On other machines.
    pub remote: u64,
    /// Weights in RAM.
    pub ram: u64,
    /// RAM that streamed weights pass through.
    pub ring: u64,
    /// On the drive only.
    pub drive: u64,
    /// Of those, experts.
    pub drive_experts: u64,
    /// Experts in RAM and in the memory of GPUs.
    pub held_experts: u64,
}

impl Problem {
    /// Of the experts that a placement holds, the share that is in the memory of GPUs.
    pub(super) fn vram_share(&self, residencies: &[Residency]) -> f64 {
        let tiers = self.tiers(residencies);
        tiers.vram as f64 / tiers.held_experts.max(1) as f64
    }

    /// The bytes that a placement has in each tier.
    pub fn tiers(&self, residencies: &[Residency]) -> TierBytes {
        let mut tiers = TierBytes { ring: self.dense_ring_bytes, ..TierBytes::default() };
        for (item, residency) in self.items.iter().zip(residencies) {
            match *residency {
                Residency::Gpu => tiers.gpu += item.bytes(),
                Residency::Remote => tiers.remote += item.bytes(),
                Residency::Host { slots } => {
                    let held = item.slot_bytes * slots as u64;
                    tiers.ram += held;
                    tiers.drive += item.bytes() - held;
                    if item.is_routed() {
                        tiers.held_experts += held;
                        tiers.drive_experts += item.bytes() - held;
                    }
                }
            }
        }
        tiers.vram = self.vram_bytes.min(tiers.held_experts);
        tiers.gpu += tiers.vram;
        tiers.ram -= tiers.vram;
        tiers
    }
}
