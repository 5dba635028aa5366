//! A pass on a timeline: how long a token takes with a placement.
//!
//! The model. Items are computed one after the other, each with the bytes that a pass uses of it. There is one drive with
//! two queues. Dense tensors that are on the drive are read in the order of use, ahead of it and across the end of the pass, as
//! long as they fit into the ring; a tensor gives its room back once it has been computed on. Experts that are missing are known
//! only when their layer begins: their reads push the dense ones aside, the layer's other experts are computed meanwhile,
//! and what arrives last is computed last. Passes repeat until one takes as long as the one before.

use super::cost::Cost;
use super::problem::{Item, Machine, Problem, Residency, Usage};

/// Passes after which a ring that has not settled is taken as it is.
const PASSES_MAX: usize = 8;

/// Seconds of a pass in steady state, and of those that the drive is busy: what placements are compared by, with as many misses as are
/// expected of each layer.
pub(crate) fn simulated_pass(problem: &Problem, residencies: &[Residency]) -> (f64, f64) {
    let pass = Simulator::on(problem, &problem.machine, false).pass(residencies);
    (pass.seconds, pass.drive_seconds)
}

/// One pass in steady state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Pass {
    pub(super) seconds: f64,
    pub(super) compute_seconds: f64,
    pub(super) drive_seconds: f64,
    pub(super) read_bytes: f64,
}

/// Simulates many placements of one problem.
pub(super) struct Simulator<'a> {
    problem: &'a Problem,
    fixed_seconds: f64,
    costs: Vec<Cost>,
    /// Whether a layer misses more for one token than for another.
    misses_vary: bool,
    /// Dense items on the drive, in order of use; kept to be used again.
    streamed: Vec<usize>,
}

impl<'a> Simulator<'a> {
    pub(super) fn on(problem: &'a Problem, machine: &Machine, misses_vary: bool) -> Self {
        let costs = Cost::of(problem, machine);
        let fixed_seconds = machine.fixed_seconds + machine.network_seconds;
        Self { problem, fixed_seconds, costs, misses_vary, streamed: Vec::new() }
    }

    /// The steady state of a placement.
    pub(super) fn pass(&mut self, residencies: &[Residency]) -> Pass {
        let items = &self.problem.items;
        let streams = |index: usize| match (&items[index].usage, residencies[index]) {
            (Usage::Routed(_) | Usage::Row(_), _) | (_, Residency::Gpu | Residency::Remote) => false,
            (_, Residency::Host { slots }) => slots == 0,
        };
        self.streamed.clear();
        self.streamed.extend((0..items.len()).filter(|&index| streams(index)));
        let drive = Drive::new(self);
        let mut run = Run { drive, now: 0.0, pass: Pass::default(), vram_share: self.problem.vram_share(residencies) };
        let mut previous = f64::INFINITY;
        for _ in 0..PASSES_MAX {
            let begin = run.now;
            run.now += self.fixed_seconds;
            run.pass = Pass { compute_seconds: self.fixed_seconds, ..Pass::default() };
            for ((item, cost), residency) in items.iter().zip(&self.costs).zip(residencies) {
                run.compute(item, cost, *residency);
            }
            run.pass.seconds = run.now - begin;
            // Without a ring nothing carries over from one pass to the next.
            if self.streamed.is_empty() || (previous - run.pass.seconds).abs() <= 1e-9 * run.pass.seconds {
                break;
            }
            previous = run.pass.seconds;
        }
        run.pass
    }
}

/// Passes that follow one another.
struct Run<'a> {
    drive: Drive<'a>,
    /// The time since the first of them began.
    now: f64,
    /// What the latest has taken so far.
    pass: Pass,
    /// Of the slots in RAM, the share that GPUs have a copy of.
    vram_share: f64,
}

impl Run<'_> {
    /// An item is computed on, where it is.
    fn compute(&mut self, item: &Item, cost: &Cost, residency: Residency) {
        let Residency::Host { slots } = residency else {
            self.now += cost.gpu_seconds;
            self.pass.compute_seconds += cost.gpu_seconds;
            return;
        };
        let (cost, gpu_seconds) = match &item.usage {
            Usage::Routed(curve) if self.vram_share > 0.0 => {
                let uploads = curve.misses((slots as f64 * self.vram_share) as usize);
                // What an expert replaces moves down, one copy after the other, unless RAM has everything.
                let copies = if slots < item.slot_count { 2.0 * uploads } else { uploads };
                (&cost.until_uploaded(copies), cost.gpu_seconds)
            }
            _ => (cost, 0.0),
        };
        self.pass.compute_seconds += cost.cpu_seconds + gpu_seconds;
        match &item.usage {
            Usage::Routed(curve) if slots < item.slot_count => {
                let misses = curve.misses(slots);
                let read_seconds = misses * cost.read_seconds;
                self.drive.interrupt(self.now, read_seconds);
                self.reads(read_seconds, misses * item.slot_bytes as f64);
                self.now += gpu_seconds;
                self.now += match self.drive.simulator.misses_vary {
                    true => cost.mean_layer_seconds(misses, curve.used()),
                    false => cost.layer_seconds(misses),
                };
            }
            // Known when the token is, and needed at once.
            Usage::Row(bytes) if slots == 0 => {
                self.drive.interrupt(self.now, cost.read_seconds);
                self.now += cost.read_seconds;
                self.reads(cost.read_seconds, *bytes as f64);
            }
            Usage::Dense | Usage::Lookup if slots == 0 => {
                self.now = self.drive.await_next(self.now) + cost.cpu_seconds;
                self.drive.give_back(self.now);
                self.reads(cost.read_seconds, item.slot_bytes as f64);
            }
            _ => self.now += cost.cpu_seconds + gpu_seconds,
        }
    }

    fn reads(&mut self, seconds: f64, bytes: f64) {
        self.pass.drive_seconds += seconds;
        self.pass.read_bytes += bytes;
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
    use crate::forecast::MissCurve;

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
}
