//! A pass on a timeline: how long a token takes with a placement, and why.
//!
//! The model. Items are computed one after the other, each with the bytes that a pass uses of it. There is one drive with
//! two queues. Dense tensors that are on the drive are read in the order of use, ahead of it and across the end of the pass, as
//! long as they fit into the ring; a tensor gives its room back once it has been computed on. Experts that are missing are known
//! only when their layer begins: their reads push the dense ones aside, the layer's other experts are computed meanwhile,
//! and what arrives last is computed last. Passes repeat until one takes as long as the one before.

use super::problem::{Machine, Problem, Residency, Usage};

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

/// Passes after which a ring that has not settled is taken as it is.
const PASSES_MAX: usize = 8;

/// Predicts what a placement does, and finds what limits it by making one thing at a time faster.
pub fn simulate(problem: &Problem, residencies: &[Residency]) -> Prediction {
    let pass = |machine: &Machine| Simulator { misses_vary: true, ..Simulator::on(problem, machine) }.pass(residencies);
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

/// Seconds of a pass in steady state, and of those that the drive is busy: what placements are compared by, with as many misses as are
/// expected of each layer.
pub(crate) fn simulated_pass(problem: &Problem, residencies: &[Residency]) -> (f64, f64) {
    let pass = Simulator::on(problem, &problem.machine).pass(residencies);
    (pass.seconds, pass.drive_seconds)
}

/// One pass in steady state.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pass {
    seconds: f64,
    compute_seconds: f64,
    drive_seconds: f64,
    read_bytes: f64,
}

/// What an item costs.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    /// Computing on it on the host.
    pub(crate) cpu_seconds: f64,
    /// Computing on it on a GPU, or on another machine.
    pub(crate) gpu_seconds: f64,
    /// Copying a slot to a GPU.
    pub(crate) upload_seconds: f64,
    /// Reading a slot.
    pub(crate) read_seconds: f64,
    /// Computing on the part of a slot that arrives last.
    pub(crate) tail_seconds: f64,
    /// Copying that part to a GPU.
    pub(crate) upload_tail_seconds: f64,
}

/// What is read of a slot that is on the drive.
fn read_bytes(item: &super::problem::Item) -> f64 {
    match item.usage {
        Usage::Row(bytes) => bytes as f64,
        _ => item.slot_bytes as f64,
    }
}

impl Cost {
    pub(crate) fn of(problem: &Problem, machine: &Machine) -> Vec<Self> {
        let cost = |item: &super::problem::Item| {
            let reads = item.reads_per_slot.max(1) as f64;
            let used = match item.usage {
                Usage::Lookup | Usage::Row(_) => 0.0,
                _ => item.used_bytes(),
            };
            Self {
                cpu_seconds: used * machine.cpu_seconds_per_byte,
                gpu_seconds: used
                    * if item.is_remote { machine.remote_seconds_per_byte } else { machine.gpu_seconds_per_byte },
                upload_seconds: item.slot_bytes as f64 * machine.upload_seconds_per_byte,
                read_seconds: read_bytes(item) * machine.drive_seconds_per_byte + reads * machine.read_overhead_seconds,
                tail_seconds: item.slot_bytes as f64 / reads * machine.cpu_seconds_per_byte,
                upload_tail_seconds: item.slot_bytes as f64 / reads * machine.upload_seconds_per_byte,
            }
        };
        problem.items.iter().map(cost).collect()
    }

    /// A layer of experts, so many of them missing: computing, or reading and then computing on what came last.
    fn layer_seconds(&self, misses: f64) -> f64 {
        self.cpu_seconds.max(misses * self.read_seconds + self.tail_seconds * misses.min(1.0))
    }

    /// The same layer where GPUs compute with it, once its experts are there, and so many slots have to be copied for that:
    /// [`Self::layer_seconds`] is then until they are.
    fn until_uploaded(&self, copies: f64) -> Self {
        Self { cpu_seconds: copies * self.upload_seconds, tail_seconds: self.upload_tail_seconds, ..*self }
    }

    /// The mean of [`Self::layer_seconds`] over tokens that miss so many of the `used` experts on average.
    fn mean_layer_seconds(&self, misses: f64, used: f64) -> f64 {
        let count = used.round().max(1.0);
        let missing = (misses / count).clamp(0.0, 1.0);
        if missing == 0.0 || missing == 1.0 {
            return self.layer_seconds(misses);
        }
        // Binomial, each term from the one before.
        let odds = missing / (1.0 - missing);
        let mut probability = (1.0 - missing).powf(count);
        let mut mean = 0.0;
        for missed in 0..=count as u32 {
            let missed = f64::from(missed);
            mean += probability * self.layer_seconds(missed);
            probability *= (count - missed) / (missed + 1.0) * odds;
        }
        mean
    }
}

/// Simulates many placements of one problem.
struct Simulator<'a> {
    problem: &'a Problem,
    fixed_seconds: f64,
    costs: Vec<Cost>,
    /// Whether a layer misses more for one token than for another.
    misses_vary: bool,
    /// Dense items on the drive, in order of use; kept to be used again.
    streamed: Vec<usize>,
}

impl<'a> Simulator<'a> {
    fn on(problem: &'a Problem, machine: &Machine) -> Self {
        let costs = Cost::of(problem, machine);
        let fixed_seconds = machine.fixed_seconds + machine.network_seconds;
        Self { problem, fixed_seconds, costs, misses_vary: false, streamed: Vec::new() }
    }

    /// The steady state of a placement.
    fn pass(&mut self, residencies: &[Residency]) -> Pass {
        let items = &self.problem.items;
        let streams = |index: usize| match (&items[index].usage, residencies[index]) {
            (Usage::Routed(_) | Usage::Row(_), _) | (_, Residency::Gpu | Residency::Remote) => false,
            (_, Residency::Host { slots }) => slots == 0,
        };
        self.streamed.clear();
        self.streamed.extend((0..items.len()).filter(|&index| streams(index)));
        let vram_share = self.problem.vram_share(residencies);
        let mut drive = Drive::new(self);
        let mut now = 0.0;
        let mut previous = f64::INFINITY;
        let mut last = Pass { seconds: 0.0, compute_seconds: 0.0, drive_seconds: 0.0, read_bytes: 0.0 };
        for _ in 0..PASSES_MAX {
            let begin = now;
            last = Pass { compute_seconds: self.fixed_seconds, ..last };
            (last.drive_seconds, last.read_bytes) = (0.0, 0.0);
            now += self.fixed_seconds;
            for ((item, cost), residency) in items.iter().zip(&self.costs).zip(residencies) {
                let Residency::Host { slots } = *residency else {
                    now += cost.gpu_seconds;
                    last.compute_seconds += cost.gpu_seconds;
                    continue;
                };
                let (cost, gpu_seconds) = match &item.usage {
                    Usage::Routed(curve) if vram_share > 0.0 => {
                        let uploads = curve.misses((slots as f64 * vram_share) as usize);
                        // What an expert replaces moves down, one copy after the other, unless RAM has everything.
                        let copies = if slots < item.slot_count { 2.0 * uploads } else { uploads };
                        (&cost.until_uploaded(copies), cost.gpu_seconds)
                    }
                    _ => (cost, 0.0),
                };
                last.compute_seconds += cost.cpu_seconds + gpu_seconds;
                match &item.usage {
                    Usage::Routed(curve) if slots < item.slot_count => {
                        let misses = curve.misses(slots);
                        let read_seconds = misses * cost.read_seconds;
                        drive.interrupt(now, read_seconds);
                        last.drive_seconds += read_seconds;
                        last.read_bytes += misses * item.slot_bytes as f64;
                        now += gpu_seconds;
                        now += match self.misses_vary {
                            true => cost.mean_layer_seconds(misses, curve.used()),
                            false => cost.layer_seconds(misses),
                        };
                    }
                    // Known when the token is, and needed at once.
                    Usage::Row(bytes) if slots == 0 => {
                        drive.interrupt(now, cost.read_seconds);
                        now += cost.read_seconds;
                        last.drive_seconds += cost.read_seconds;
                        last.read_bytes += *bytes as f64;
                    }
                    Usage::Dense | Usage::Lookup if slots == 0 => {
                        now = drive.await_next(now) + cost.cpu_seconds;
                        drive.give_back(now);
                        last.drive_seconds += cost.read_seconds;
                        last.read_bytes += item.slot_bytes as f64;
                    }
                    _ => now += cost.cpu_seconds + gpu_seconds,
                }
            }
            last.seconds = now - begin;
            // Without a ring nothing carries over from one pass to the next.
            if self.streamed.is_empty() || (previous - last.seconds).abs() <= 1e-9 * last.seconds {
                break;
            }
            previous = last.seconds;
        }
        last
    }
}

/// The drive and the ring that dense tensors are read into.
struct Drive<'a> {
    simulator: &'a Simulator<'a>,
    /// Up to when the drive's work is settled.
    clock: f64,
    /// Of the read in flight, if there is one.
    left_seconds: Option<f64>,
    /// Reads of dense tensors that are complete, over all passes.
    read_count: usize,
    /// Those that were computed on.
    used_count: usize,
    /// Ring bytes that are being read into or not given back.
    ring_used_bytes: u64,
}

impl<'a> Drive<'a> {
    fn new(simulator: &'a Simulator<'a>) -> Self {
        Self { simulator, clock: 0.0, left_seconds: None, read_count: 0, used_count: 0, ring_used_bytes: 0 }
    }

    fn item_of(&self, read: usize) -> usize {
        self.simulator.streamed[read % self.simulator.streamed.len()]
    }

    /// Reads ahead until a time, or until so many reads are complete.
    fn advance(&mut self, until: f64, read_count: usize) {
        let streamed_count = self.simulator.streamed.len();
        while self.clock < until && self.read_count < read_count {
            match self.left_seconds {
                Some(left) if self.clock + left <= until => {
                    self.clock += left;
                    self.left_seconds = None;
                    self.read_count += 1;
                }
                Some(left) => {
                    self.left_seconds = Some(left - (until - self.clock));
                    self.clock = until;
                }
                None => {
                    // No further ahead than one pass: the block would still be there from the last time.
                    let ahead = self.read_count - self.used_count;
                    let item = if ahead < streamed_count { Some(self.item_of(self.read_count)) } else { None };
                    let bytes = item.map_or(u64::MAX, |item| self.simulator.problem.items[item].slot_bytes);
                    let filled = self.ring_used_bytes.saturating_add(bytes);
                    match item {
                        Some(item) if ahead == 0 || filled <= self.simulator.problem.dense_ring_bytes => {
                            self.ring_used_bytes = filled;
                            self.left_seconds = Some(self.simulator.costs[item].read_seconds);
                        }
                        _ => self.clock = until,
                    }
                }
            }
        }
    }

    /// When the next dense tensor, asked for now, is there.
    fn await_next(&mut self, now: f64) -> f64 {
        self.advance(now, usize::MAX);
        self.advance(f64::INFINITY, self.used_count + 1);
        now.max(self.clock)
    }

    /// The next dense tensor has been computed on.
    fn give_back(&mut self, now: f64) {
        self.advance(now, usize::MAX);
        self.ring_used_bytes -= self.simulator.problem.items[self.item_of(self.used_count)].slot_bytes;
        self.used_count += 1;
    }

    /// Reads of missing experts come first.
    fn interrupt(&mut self, now: f64, seconds: f64) {
        self.advance(now, usize::MAX);
        self.clock = now + seconds;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::forecast::{Item, MissCurve};

    const COST: Cost = Cost {
        cpu_seconds: 8.0,
        gpu_seconds: 0.0,
        upload_seconds: 3.0,
        read_seconds: 4.0,
        tail_seconds: 1.0,
        upload_tail_seconds: 1.0,
    };

    #[test]
    fn misses_that_vary_make_a_layer_wait_also_where_their_mean_hides_behind_computing() {
        assert_eq!(COST.layer_seconds(1.0), 8.0);
        // None, one or two of two, with a quarter, a half and a quarter of the tokens.
        let by_hand = 0.25 * 8.0 + 0.5 * 8.0 + 0.25 * 9.0;
        assert!((COST.mean_layer_seconds(1.0, 2.0) - by_hand).abs() < 1e-12);
    }

    #[test]
    fn a_gpu_computes_when_the_experts_that_it_lacks_are_there() {
        let curve = Arc::new(MissCurve::from_frequencies(&[1.0; 4], 2).unwrap());
        let experts = Item {
            layer: Some(0),
            role: String::new(),
            tensors: Vec::new(),
            slot_bytes: 1000,
            slot_count: 4,
            reads_per_slot: 1,
            usage: Usage::Routed(curve),
            is_elsewhere: false,
            is_remote: false,
            streamable: true,
        };
        let machine = Machine {
            cpu_seconds_per_byte: 1.0,
            gpu_seconds_per_byte: 1e-6,
            remote_seconds_per_byte: 0.0,
            network_seconds: 0.0,
            upload_seconds_per_byte: 2e-6,
            fixed_seconds: 0.0,
            drive_seconds_per_byte: 1e-5,
            read_overhead_seconds: 0.0,
        };
        let seconds = |slots: usize, vram_bytes: u64| {
            let problem =
                Problem { items: vec![experts.clone()], machine: machine.clone(), dense_ring_bytes: 0, vram_bytes };
            simulated_pass(&problem, &[Residency::Host { slots }]).0
        };
        let close = |found: f64, by_hand: f64| assert!((found - by_hand).abs() < 1e-9, "{found}, not {by_hand}");
        // Two of four experts are used; computing with them takes 2 ms.
        close(seconds(4, 4000), 0.002);
        close(seconds(4, 2000), 0.002 + 1.0 * 0.002); // one is copied
        close(seconds(2, 1000), 0.002 + 1.0 * 0.010 + 0.002); // one is read, and copied last
        close(seconds(3, 1000), 0.002 + 2.0 * 1.5 * 0.002); // one or two are copied, and others back, while one is read half of the time
    }

    #[test]
    fn the_mean_is_never_less_than_the_layer_with_mean_misses() {
        for used in 1..=16 {
            for tenths in 0..=10 * used {
                let misses = f64::from(tenths) / 10.0;
                let (mean, plain) = (COST.mean_layer_seconds(misses, f64::from(used)), COST.layer_seconds(misses));
                assert!(mean >= plain - 1e-9, "{misses} of {used}: {mean} below {plain}");
            }
        }
        assert_eq!(COST.mean_layer_seconds(0.0, 8.0), 8.0);
        assert_eq!(COST.mean_layer_seconds(8.0, 8.0), COST.layer_seconds(8.0));
    }
}
