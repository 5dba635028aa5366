//! From fractions to whole tensors and whole expert slots.
//!
//! The relaxed optimum is rounded so that every capacity holds, the seats of a class spread evenly over the pass. Then
//! *windows*, a handful of items each, are rearranged in every way that there is room for, and a new arrangement is
//! kept when the simulated pass says that it is better. Most arrangements are never simulated, because the bound of the
//! relaxed problem, summed up for them, already is no better. What is left of RAM at the end is filled, whatever it
//! gains.
//!
//! Everything is deterministic: effort is counted, not timed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};

use super::problem::{Item, Problem, Seat, Usage};
use super::relax::{Class, READ_PENALTY, Relaxed, Streams};
use super::simulate::{Cost, Simulator};

/// Simulated items of all passes that a search may cost, and passes in any case.
const SIMULATED_ITEMS_MAX: usize = 12_000_000;
const SIMULATIONS_MAX: usize = 6000;

/// Arrangements of a window at most.
const ARRANGEMENTS_MAX: usize = 4096;

/// Windows in a row that may gain nothing before the search ends.
const IDLE_WINDOWS_MAX: usize = 150;

/// How much better is better: less is rounding.
const GAIN_MIN: f64 = 1e-9;

/// A placement that keeps every capacity, found by rounding; `None` when there is none that rounding can find.
pub(super) fn round<'a>(
    problem: &'a Problem,
    classes: &[Class],
    streams: Streams,
    relaxed: Option<&Relaxed>,
) -> Option<Search<'a>> {
    let mut search = Search::begin(problem, streams)?;
    if let Some(relaxed) = relaxed {
        let wishes = wishes(problem, classes, relaxed, &search.seats);
        search.grant(&wishes);
    }
    search.fill();
    search.score = search.judge();
    Some(search)
}

/// The seats that come closest to the relaxed optimum, capacities aside.
fn wishes(problem: &Problem, classes: &[Class], relaxed: &Relaxed, start: &[Seat]) -> Vec<Seat> {
    // What rounding down must not lose: the solver's own tolerance.
    const TOLERANCE: f64 = 1e-6;
    let mut seats = start.to_vec();
    for (class, share) in classes.iter().zip(&relaxed.shares) {
        let count = class.items.len();
        let on_gpu = ((share.gpu_items + TOLERANCE) as usize).min(count);
        let slot_count = problem.items[class.items[0]].slot_count;
        let slots = ((share.slots + TOLERANCE) as usize).min((count - on_gpu) * slot_count);
        // The first of the host's items would otherwise all be resident, and the drive idle while they are computed.
        let part = |index: usize, total: usize, of: usize| (index + 1) * total / of - index * total / of;
        let mut host_index = 0;
        for (index, &item) in class.items.iter().enumerate() {
            if part(index, on_gpu, count) == 1 {
                seats[item] = Seat::Gpu;
            } else {
                if problem.items[item].streamable {
                    seats[item] = Seat::Host { slots: part(host_index, slots, count - on_gpu) };
                }
                host_index += 1;
            }
        }
    }
    seats
}

/// What is known of a placement without a timeline.
#[derive(Clone, Copy, Debug)]
struct Totals {
    ram_bytes: u64,
    gpu_bytes: u64,
    dense_streamed: usize,
    experts_streamed: usize,
    compute_seconds: f64,
    read_seconds: f64,
    wait_seconds: f64,
}

impl Totals {
    fn nothing() -> Self {
        Self {
            ram_bytes: 0,
            gpu_bytes: 0,
            dense_streamed: 0,
            experts_streamed: 0,
            compute_seconds: 0.0,
            read_seconds: 0.0,
            wait_seconds: 0.0,
        }
    }

    /// Adds an item in a seat.
    fn add(&mut self, item: &Item, cost: &Cost, seat: Seat) {
        let Seat::Host { slots } = seat else {
            self.gpu_bytes += item.bytes();
            self.compute_seconds += cost.gpu_seconds;
            return;
        };
        self.ram_bytes += item.slot_bytes * slots as u64;
        self.compute_seconds += cost.cpu_seconds;
        if slots == item.slot_count {
            return;
        }
        if let Usage::Routed(curve) = &item.usage {
            let misses = curve.misses(slots);
            let read_seconds = misses * cost.read_seconds;
            self.experts_streamed += 1;
            self.read_seconds += read_seconds;
            self.wait_seconds += (read_seconds + cost.tail_seconds * misses.min(1.0) - cost.cpu_seconds).max(0.0);
        } else {
            self.dense_streamed += 1;
            self.read_seconds += cost.read_seconds;
        }
    }

    /// A cost that the simulated pass cannot be below.
    fn bound(&self) -> f64 {
        (self.compute_seconds + self.wait_seconds).max(self.read_seconds) + READ_PENALTY * self.read_seconds
    }
}

/// The best seats of a window so far.
struct Arrangement {
    seats: Vec<Seat>,
    score: f64,
}

/// A placement on its way to a good one.
pub(super) struct Search<'a> {
    problem: &'a Problem,
    simulator: Simulator<'a>,
    costs: Vec<Cost>,
    pub(super) seats: Vec<Seat>,
    /// Seconds of a simulated pass, and the penalty for reads.
    pub(super) score: f64,
    simulations_left: usize,
    random: u64,
}

impl<'a> Search<'a> {
    /// Everything that may be on the drive is there; `None` when the rest does not fit, on the GPU or in RAM.
    fn begin(problem: &'a Problem, streams: Streams) -> Option<Self> {
        let seat = |item: &Item| match (item.on_gpu, streams.allow(item)) {
            (true, _) => Seat::Gpu,
            (false, true) => Seat::Host { slots: 0 },
            (false, false) => Seat::Host { slots: item.slot_count },
        };
        let simulator = Simulator::new(problem);
        let mut search = Self {
            problem,
            costs: simulator.costs().to_vec(),
            simulator,
            seats: problem.items.iter().map(seat).collect(),
            score: f64::INFINITY,
            simulations_left: (SIMULATED_ITEMS_MAX / problem.items.len().max(1)).min(SIMULATIONS_MAX),
            random: 0x9e37_79b9_7f4a_7c15,
        };
        let totals = search.totals();
        let ring_bytes = problem.ring_bytes(totals.dense_streamed > 0, totals.experts_streamed > 0);
        let excess_bytes = (totals.ram_bytes + ring_bytes).saturating_sub(problem.machine.ram_bytes);
        if excess_bytes > 0 {
            let items = problem.items.iter().enumerate();
            let resident = items.filter(|(_, item)| !item.on_gpu && !streams.allow(item));
            let sizes: Vec<(usize, u64)> = resident.map(|(index, item)| (index, item.bytes())).collect();
            for index in subset(&sizes, excess_bytes, problem.machine.gpu_bytes)? {
                search.seats[index] = Seat::Gpu;
            }
        }
        Some(search)
    }

    /// Sums of what was not on a GPU already.
    fn totals(&self) -> Totals {
        let mut totals = Totals { compute_seconds: self.problem.machine.fixed_seconds, ..Totals::nothing() };
        for ((item, cost), &seat) in self.problem.items.iter().zip(&self.costs).zip(&self.seats) {
            totals.add(item, cost, seat);
            if item.on_gpu {
                totals.gpu_bytes -= item.bytes();
            }
        }
        totals
    }

    fn fits(&self, totals: &Totals) -> bool {
        let ring_bytes = self.problem.ring_bytes(totals.dense_streamed > 0, totals.experts_streamed > 0);
        totals.gpu_bytes <= self.problem.machine.gpu_bytes
            && totals.ram_bytes + ring_bytes <= self.problem.machine.ram_bytes
    }

    fn is_feasible(&self) -> bool {
        self.fits(&self.totals())
    }

    fn judge(&mut self) -> f64 {
        self.simulations_left = self.simulations_left.saturating_sub(1);
        let pass = self.simulator.pass(&self.seats);
        pass.seconds + READ_PENALTY * pass.drive_seconds
    }

    /// Takes the seats wished for, all of them or as many as there is room for.
    fn grant(&mut self, wishes: &[Seat]) {
        let before = std::mem::replace(&mut self.seats, wishes.to_vec());
        if self.is_feasible() {
            return;
        }
        self.seats = before;
        let mut totals = self.totals();
        for (index, &wish) in wishes.iter().enumerate() {
            let (item, cost) = (&self.problem.items[index], &self.costs[index]);
            // Only what an item adds counts: its present seat has no slots, or cannot be left.
            let mut with = totals;
            if self.seats[index] == (Seat::Host { slots: 0 }) && wish != self.seats[index] {
                with.add(item, cost, wish);
                if self.fits(&with) {
                    totals = with;
                    self.seats[index] = wish;
                }
            }
        }
    }

    /// Fills RAM, with what saves most per byte first.
    pub(super) fn fill(&mut self) {
        /// What a further slot would save; ordered by seconds per byte.
        #[derive(PartialEq)]
        struct Offer(f64, usize);
        impl Eq for Offer {}
        impl PartialOrd for Offer {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for Offer {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.0.total_cmp(&other.0).then(other.1.cmp(&self.1))
            }
        }
        let offer = |problem: &Problem, costs: &[Cost], seats: &[Seat], index: usize| {
            let item = &problem.items[index];
            match seats[index] {
                Seat::Host { slots } if slots < item.slot_count => {
                    let saved = match &item.usage {
                        Usage::Routed(curve) => curve.misses(slots) - curve.misses(slots + 1),
                        _ => 1.0,
                    };
                    Some(Offer(saved * costs[index].read_seconds / item.slot_bytes.max(1) as f64, index))
                }
                _ => None,
            }
        };
        let indices = 0..self.seats.len();
        let mut offers: BinaryHeap<Offer> =
            indices.filter_map(|index| offer(self.problem, &self.costs, &self.seats, index)).collect();
        let totals = self.totals();
        let mut ram_bytes = totals.ram_bytes;
        let (mut dense, mut experts) = (totals.dense_streamed, totals.experts_streamed);
        while let Some(Offer(_, index)) = offers.pop() {
            let item = &self.problem.items[index];
            let Seat::Host { slots } = self.seats[index] else { continue };
            let completes = slots + 1 == item.slot_count;
            let dense_after = dense - usize::from(completes && !item.is_routed());
            let experts_after = experts - usize::from(completes && item.is_routed());
            let ring_bytes = self.problem.ring_bytes(dense_after > 0, experts_after > 0);
            if ram_bytes + item.slot_bytes + ring_bytes > self.problem.machine.ram_bytes {
                continue;
            }
            ram_bytes += item.slot_bytes;
            (dense, experts) = (dense_after, experts_after);
            self.seats[index] = Seat::Host { slots: slots + 1 };
            offers.extend(offer(self.problem, &self.costs, &self.seats, index));
        }
    }

    /// Rearranges windows until that gains nothing any more; then, while there is effort to spare, does so again from
    /// somewhere near, since the last step may have led into a corner.
    pub(super) fn improve(&mut self, classes: &[Class]) {
        const KICKS: usize = 8;
        let mut exhausted = self.descend(classes);
        for _ in 0..KICKS {
            if exhausted || self.simulations_left < SIMULATIONS_MAX / 2 {
                break;
            }
            let (seats, score) = (self.seats.clone(), self.score);
            self.kick(classes);
            exhausted = self.descend(classes);
            if self.score >= score {
                (self.seats, self.score) = (seats, score);
            }
        }
        self.fill();
        self.score = self.judge();
    }

    /// Takes what gains until nothing does; says whether one window held everything, so that only other slot counts of
    /// experts could be better.
    fn descend(&mut self, classes: &[Class]) -> bool {
        let movable: usize = classes.iter().map(|class| class.items.len()).sum();
        let mut idle = 0;
        while idle < IDLE_WINDOWS_MAX && self.simulations_left > 0 {
            let window = self.window(classes);
            let whole = window.len() == movable;
            idle = if self.rearrange(&window) { 0 } else { idle + 1 };
            if whole && idle > 0 {
                return true;
            }
        }
        false
    }

    /// Rearranges a window at random.
    fn kick(&mut self, classes: &[Class]) {
        const TRIES: usize = 20;
        let window = self.window(classes);
        let kept = self.seats.clone();
        for _ in 0..TRIES {
            for &item in &window {
                let options = self.options(item);
                self.seats[item] = options[self.below(options.len())];
            }
            if self.is_feasible() {
                self.score = self.judge();
                return;
            }
        }
        self.seats = kept;
    }

    /// Some items whose arrangements are few enough to try: of some random classes, one that is in RAM and one that is
    /// not, so that they can change places, and as many more as there is room for.
    fn window(&mut self, classes: &[Class]) -> Vec<usize> {
        const CLASSES_MAX: usize = 12;
        let mut order: Vec<usize> = (0..classes.len()).collect();
        let chosen = order.len().min(CLASSES_MAX);
        let mut pairs = Vec::new();
        let mut more = Vec::new();
        for index in 0..chosen {
            let other = index + self.below(order.len() - index);
            order.swap(index, other);
            let items = &classes[order[index]].items;
            let start = self.below(items.len());
            let is_in_ram = |item: usize| matches!(self.seats[item], Seat::Host { slots } if slots > 0);
            let mut turned = items[start..].iter().chain(&items[..start]).copied();
            pairs.extend(turned.clone().find(|&item| is_in_ram(item)));
            pairs.extend(turned.clone().find(|&item| !is_in_ram(item)));
            more.extend(turned.by_ref().take(CLASSES_MAX));
        }
        let mut window = Vec::new();
        let mut taken = HashSet::new();
        let mut arrangements = 1;
        for item in pairs.into_iter().chain(more) {
            let options = self.options(item).len();
            if arrangements * options <= ARRANGEMENTS_MAX && taken.insert(item) {
                arrangements *= options;
                window.push(item);
            }
        }
        window
    }

    /// The seats to try for an item.
    fn options(&self, index: usize) -> Vec<Seat> {
        let item = &self.problem.items[index];
        let mut options = Vec::new();
        let count = item.slot_count;
        if !item.streamable {
            options.push(Seat::Host { slots: count });
        } else if item.is_routed() {
            let now = match self.seats[index] {
                Seat::Host { slots } => slots,
                Seat::Gpu => count,
            };
            // All of them where they are few, else steps of three lengths.
            let steps = [0, 1, 2, 3, count / 16, count];
            let near = steps.iter().flat_map(|&step| [now + step, now.saturating_sub(step)]);
            let slots: BTreeSet<usize> = near.map(|slots| slots.min(count)).collect();
            options.extend(slots.into_iter().map(|slots| Seat::Host { slots }));
        } else {
            options.extend([Seat::Host { slots: 1 }, Seat::Host { slots: 0 }]);
        }
        if item.bytes() <= self.problem.machine.gpu_bytes {
            options.push(Seat::Gpu);
        }
        options
    }

    /// Tries every arrangement of a window; says whether a better one was found and taken.
    fn rearrange(&mut self, window: &[usize]) -> bool {
        let options: Vec<Vec<Seat>> = window.iter().map(|&item| self.options(item)).collect();
        let mut rest = self.totals_without(window);
        // Rounding must not hide an arrangement.
        rest.compute_seconds *= 1.0 - 1e-12;
        let mut best = Arrangement { seats: window.iter().map(|&item| self.seats[item]).collect(), score: self.score };
        self.arrange(window, (window, &options), &rest, &mut best);
        for (&item, &seat) in window.iter().zip(&best.seats) {
            self.seats[item] = seat;
        }
        let found = best.score < self.score;
        self.score = best.score;
        found
    }

    /// Goes through the arrangements of what is left of a window, given those before. What is left only adds bytes and
    /// seconds, so where these are too many already, all further arrangements are.
    fn arrange(
        &mut self,
        window: &[usize],
        (items, options): (&[usize], &[Vec<Seat>]),
        totals: &Totals,
        best: &mut Arrangement,
    ) {
        let limit = best.score * (1.0 - GAIN_MIN);
        let machine = &self.problem.machine;
        if totals.bound() >= limit || totals.ram_bytes > machine.ram_bytes || totals.gpu_bytes > machine.gpu_bytes {
            return;
        }
        if let ([item, items @ ..], [seats, options @ ..]) = (items, options) {
            for &seat in seats {
                let mut totals = *totals;
                totals.add(&self.problem.items[*item], &self.costs[*item], seat);
                self.seats[*item] = seat;
                self.arrange(window, (items, options), &totals, best);
            }
        } else if self.fits(totals) && self.simulations_left > 0 {
            let score = self.judge();
            if score < limit {
                *best = Arrangement { seats: window.iter().map(|&item| self.seats[item]).collect(), score };
            }
        }
    }

    fn totals_without(&self, window: &[usize]) -> Totals {
        let mut totals = self.totals();
        for &index in window {
            let mut alone = Totals::nothing();
            alone.add(&self.problem.items[index], &self.costs[index], self.seats[index]);
            totals.ram_bytes -= alone.ram_bytes;
            totals.gpu_bytes -= alone.gpu_bytes;
            totals.dense_streamed -= alone.dense_streamed;
            totals.experts_streamed -= alone.experts_streamed;
            totals.compute_seconds -= alone.compute_seconds;
            totals.read_seconds -= alone.read_seconds;
            totals.wait_seconds -= alone.wait_seconds;
        }
        totals
    }

    /// A number below a limit; xorshift, seeded the same each time.
    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) as usize % limit
    }
}

/// Items whose bytes together are at least `least` and at most `most`.
///
/// All sums that can be had are kept, as long as they are few: then the answer is exact. With many items a sum in the
/// interval is easy to hit, and taking the largest that fit finds one.
fn subset(sizes: &[(usize, u64)], least: u64, most: u64) -> Option<Vec<usize>> {
    const SUMS_MAX: usize = 20_000;
    if least > most || sizes.iter().map(|(_, bytes)| bytes).sum::<u64>() < least {
        return None;
    }
    let mut largest_first = sizes.to_vec();
    largest_first.sort_by_key(|&(index, bytes)| (Reverse(bytes), index));
    let (mut sum, mut chosen) = (0, Vec::new());
    for &(index, bytes) in &largest_first {
        if sum < least && sum + bytes <= most {
            sum += bytes;
            chosen.push(index);
        }
    }
    if sum >= least {
        return Some(chosen);
    }
    // By sum: the last item in it, and the sum before.
    let mut reached: BTreeMap<u64, Option<(usize, u64)>> = BTreeMap::from([(0, None)]);
    for &(index, bytes) in &largest_first {
        let sums: Vec<u64> = reached.keys().copied().collect();
        for sum in sums {
            let next = sum + bytes;
            if next <= most {
                reached.entry(next).or_insert(Some((index, sum)));
            }
        }
        if reached.len() > SUMS_MAX || reached.range(least..).next().is_some() {
            break;
        }
    }
    let (&end, _) = reached.range(least..).next()?;
    let mut chosen = Vec::new();
    let mut sum = end;
    while let Some(Some((index, before))) = reached.get(&sum) {
        chosen.push(*index);
        sum = *before;
    }
    Some(chosen)
}
