//! What a placement will do, and what limits it: a pass is simulated as the machine is, and then with one thing at a time faster.

use super::problem::{Machine, Problem, Residency};
use super::simulator::Simulator;

/// What a placement is expected to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Seconds from token to token.
    pub seconds_per_token: f64,
    /// Of those, computing.
    pub compute_seconds: f64,
    /// Of those, the drive was busy.
    pub drive_seconds: f64,
    /// Of those, computing waited for the drive.
    pub stall_seconds: f64,
    /// Bytes read per token.
    pub read_bytes: f64,
    /// What would make it faster.
    pub limit: Limit,
}

impl Prediction {
    /// Tokens per second; 0 when nothing takes any time.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds_per_token > 0.0 { 1.0 / self.seconds_per_token } else { 0.0 }
    }
}

/// The bottleneck: the resource whose speed-up by a tenth shortens a token most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The drive's speed.
    Drive,
    /// How fast the CPU gets through weights in RAM.
    Memory,
    /// The GPU.
    Gpu,
    /// The bus that leads there.
    Bus,
    /// Another machine.
    Remote,
    /// The network that leads there.
    Network,
    /// Time that no placement changes.
    Fixed,
}

impl Limit {
    /// For logs and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drive => "drive",
            Self::Memory => "memory bandwidth",
            Self::Gpu => "GPU",
            Self::Bus => "bus to the GPU",
            Self::Remote => "the other machine",
            Self::Network => "network",
            Self::Fixed => "fixed work per token",
        }
    }
}

/// Predicts what a placement does, and finds what limits it by making one thing at a time faster.
pub fn simulate(problem: &Problem, residencies: &[Residency]) -> Prediction {
    let pass = |machine: &Machine| Simulator::on(problem, machine, true).pass(residencies);
    let (machine, base) = (&problem.machine, pass(&problem.machine));
    const FASTER: f64 = 0.9;
    let candidates = [
        (
            Limit::Drive,
            Machine {
                drive_seconds_per_byte: machine.drive_seconds_per_byte * FASTER,
                read_overhead_seconds: machine.read_overhead_seconds * FASTER,
                ..machine.clone()
            },
        ),
        (Limit::Memory, Machine { cpu_seconds_per_byte: machine.cpu_seconds_per_byte * FASTER, ..machine.clone() }),
        (Limit::Gpu, Machine { gpu_seconds_per_byte: machine.gpu_seconds_per_byte * FASTER, ..machine.clone() }),
        (Limit::Bus, Machine { upload_seconds_per_byte: machine.upload_seconds_per_byte * FASTER, ..machine.clone() }),
        (
            Limit::Remote,
            Machine { remote_seconds_per_byte: machine.remote_seconds_per_byte * FASTER, ..machine.clone() },
        ),
        (Limit::Network, Machine { network_seconds: machine.network_seconds * FASTER, ..machine.clone() }),
        (Limit::Fixed, Machine { fixed_seconds: machine.fixed_seconds * FASTER, ..machine.clone() }),
    ];
    let limit = candidates
        .map(|(limit, machine)| (limit, pass(&machine).seconds))
        .into_iter()
        .min_by(|one, other| one.1.total_cmp(&other.1))
        .map_or(Limit::Memory, |(limit, _)| limit);
    Prediction {
        seconds_per_token: base.seconds,
        compute_seconds: base.compute_seconds,
        drive_seconds: base.drive_seconds,
        stall_seconds: (base.seconds - base.compute_seconds).max(0.0),
        read_bytes: base.read_bytes,
        limit,
    }
}
