//! The placement problem in plain numbers: what must be somewhere, and what the machine offers.
//!
//! An *item* is what is placed as one: a dense tensor, or all experts of one layer. It has *slots*: a dense tensor has
//! one, the experts of a layer have one per expert. A *seat* says where an item is: on the GPU as a whole, or on the host
//! with some of its slots in RAM and the rest on the drive.

use std::sync::Arc;

use super::miss::MissCurve;
use crate::error::{Error, ErrorCode, Result};

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
    /// The host or its user put it on a GPU, where it stays.
    pub on_gpu: bool,
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
    /// Room on GPUs for items that the host has not placed there; 0 when the host has decided.
    pub gpu_bytes: u64,
    /// RAM for all weights on the host, streamed or not, KV cache and compute buffers taken off.
    pub ram_bytes: u64,
    /// Computing on weights in RAM.
    pub cpu_seconds_per_byte: f64,
    /// Computing on weights on a GPU.
    pub gpu_seconds_per_byte: f64,
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
    /// RAM that dense tensors pass through when one of them is on the drive.
    pub dense_ring_bytes: u64,
    /// RAM that experts pass through when one of them is on the drive.
    pub expert_ring_bytes: u64,
}

/// Where an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// On a GPU, as a whole.
    Gpu,
    /// On the host: this many slots in RAM, the others on the drive.
    Host {
        /// Slots in RAM, the most used experts first.
        slots: usize,
    },
}

/// Bytes in each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierBytes {
    /// On GPUs, by the host's choice and by ours.
    pub gpu: u64,
    /// Of those, what this placement put there.
    pub gpu_chosen: u64,
    /// Weights in RAM.
    pub ram: u64,
    /// RAM that streamed weights pass through.
    pub ring: u64,
    /// On the drive only.
    pub drive: u64,
    /// Of those, experts.
    pub drive_experts: u64,
}

impl Problem {
    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the number that does not.
    pub fn check(&self) -> Result<()> {
        let Machine {
            cpu_seconds_per_byte,
            gpu_seconds_per_byte,
            fixed_seconds,
            drive_seconds_per_byte,
            read_overhead_seconds,
            ..
        } = self.machine;
        for (name, value) in [
            ("the CPU's seconds per byte", cpu_seconds_per_byte),
            ("the GPU's seconds per byte", gpu_seconds_per_byte),
            ("fixed seconds", fixed_seconds),
            ("the drive's seconds per byte", drive_seconds_per_byte),
            ("a read's overhead", read_overhead_seconds),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(invalid(format!("{name} cannot be {value}")));
            }
        }
        for (index, item) in self.items.iter().enumerate() {
            let slots_match = match &item.usage {
                Usage::Routed(curve) => curve.slot_count() == item.slot_count,
                Usage::Dense | Usage::Lookup | Usage::Row(_) => item.slot_count == 1,
            };
            if !slots_match {
                let count = item.slot_count;
                return Err(invalid(format!("item {index} ({}) cannot have {count} slots", item.role)));
            }
        }
        let total = self.items.iter().try_fold(0u64, |sum, item| sum.checked_add(item.bytes()));
        match total.and_then(|sum| sum.checked_add(self.dense_ring_bytes)?.checked_add(self.expert_ring_bytes)) {
            Some(_) => Ok(()),
            None => Err(invalid("the items have more bytes than a number can hold".to_owned())),
        }
    }

    /// The bytes that a placement has in each tier.
    pub fn tiers(&self, seats: &[Seat]) -> TierBytes {
        let mut tiers = TierBytes::default();
        let (mut dense_streams, mut experts_stream) = (false, false);
        for (item, seat) in self.items.iter().zip(seats) {
            match *seat {
                Seat::Gpu => {
                    tiers.gpu += item.bytes();
                    if !item.on_gpu {
                        tiers.gpu_chosen += item.bytes();
                    }
                }
                Seat::Host { slots } => {
                    let ram = item.slot_bytes * slots as u64;
                    let drive = item.bytes() - ram;
                    tiers.ram += ram;
                    tiers.drive += drive;
                    if item.is_routed() {
                        tiers.drive_experts += drive;
                        experts_stream |= drive > 0;
                    } else {
                        dense_streams |= drive > 0;
                    }
                }
            }
        }
        tiers.ring = self.ring_bytes(dense_streams, experts_stream);
        tiers
    }

    /// RAM that streamed weights pass through.
    pub(super) fn ring_bytes(&self, dense_streams: bool, experts_stream: bool) -> u64 {
        let dense = if dense_streams { self.dense_ring_bytes } else { 0 };
        let experts = if experts_stream { self.expert_ring_bytes } else { 0 };
        dense + experts
    }

    /// Whether a placement respects every capacity, and what may not be moved.
    pub fn is_feasible(&self, seats: &[Seat]) -> bool {
        let allowed = |item: &Item, seat: &Seat| match *seat {
            Seat::Gpu => true,
            Seat::Host { slots } => {
                !item.on_gpu && slots <= item.slot_count && (item.streamable || slots == item.slot_count)
            }
        };
        if seats.len() != self.items.len() || !self.items.iter().zip(seats).all(|(item, seat)| allowed(item, seat)) {
            return false;
        }
        let tiers = self.tiers(seats);
        tiers.gpu_chosen <= self.machine.gpu_bytes && tiers.ram + tiers.ring <= self.machine.ram_bytes
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidArgument, format!("the placement problem makes no sense: {message}"))
}
