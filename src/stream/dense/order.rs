//! The order in which tensors are used, learned from use.
//!
//! Nothing in a file tells it: names suggest gate before up, and some graphs run up first. A *pass* is what the host computes for
//! one batch of tokens, and may use a tensor several times: looped models do. Whoever computes says where a pass begins; of one who does
//! not say, a pass begins whenever the tensor is used that was used first of all. A likely order serves the first pass; every pass is
//! recorded, and those that differ from what is known are learned.

use std::sync::Arc;

use crate::index::StreamedId;

/// Passes of one user that are remembered: an encoder's, a decoder's, and some to spare.
const PASSES_MAX: usize = 4;

/// Uses in a pass up to which it is recorded. No graph is as long, so something never says where a pass begins.
const USES_MAX: usize = 1 << 16;

/// What all users of a model share.
#[derive(Debug)]
pub struct Order {
    /// All tensors, each once, in the likely order.
    likely: Arc<[StreamedId]>,
    /// The pass that was learned last, by whomever.
    learned: Option<Arc<[StreamedId]>>,
    /// The first tensor ever used.
    first: Option<StreamedId>,
    passes: u64,
}

/// Where one user is. Users that work at the same time each have one, so they do not teach each other's interleaving.
#[derive(Debug, Default)]
pub struct Walk {
    /// Passes that this user makes, the latest first.
    known: Vec<Arc<[StreamedId]>>,
    /// Where the latest use is in the first of them.
    position: Option<usize>,
    /// What was used since the pass began.
    recorded: Vec<StreamedId>,
    /// Whether the next use begins a pass, as a user knows that tells.
    told: Option<bool>,
}

impl Order {
    /// Starts from a likely order: all tensors, each once, in the likely order.
    pub fn new(likely: &[StreamedId]) -> Self {
        Self { likely: likely.into(), learned: None, first: None, passes: 0 }
    }

    /// A user uses a tensor. Says whether a pass begins with that.
    pub fn observe(&mut self, walk: &mut Walk, tensor: StreamedId) -> bool {
        let is_first = *self.first.get_or_insert(tensor) == tensor;
        let begins = match &mut walk.told {
            Some(told) => std::mem::take(told),
            None => is_first,
        };
        if begins {
            self.passes += 1;
            walk.end_pass(self);
        }
        if walk.known.is_empty() {
            walk.known.push(Arc::clone(self.learned.as_ref().unwrap_or(&self.likely)));
        }
        walk.step(tensor);
        begins
    }

    /// How many passes have begun.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// The pass that was learned last, use by use; `None` before the first was complete.
    pub fn learned(&self) -> Option<&[StreamedId]> {
        self.learned.as_deref()
    }
}

impl Walk {
    /// The next use begins a pass. From the first call on, nothing else does.
    pub fn begin_pass(&mut self) {
        self.told = Some(true);
    }

    /// What follows the latest use, nearest first, across the end of the pass and once around at most.
    pub fn after(&self) -> impl Iterator<Item = StreamedId> + '_ {
        let pass: &[StreamedId] = self.known.first().map_or(&[], |pass| pass);
        let (before, after) = match self.position {
            Some(position) => (&pass[..position], &pass[position + 1..]),
            None => (&pass[..0], &pass[..0]),
        };
        after.iter().chain(before).copied()
    }

    /// Learns the pass that has ended, unless it is known.
    fn end_pass(&mut self, order: &mut Order) {
        let recorded = std::mem::take(&mut self.recorded);
        if recorded.is_empty() || recorded.len() == USES_MAX {
            return;
        }
        match self.known.iter().position(|pass| **pass == *recorded) {
            Some(index) => self.known[..=index].rotate_right(1),
            None => {
                self.known.insert(0, recorded.clone().into());
                self.known.truncate(PASSES_MAX);
            }
        }
        self.recorded = recorded;
        self.recorded.clear();
        self.position = None;
        order.learned = self.known.first().cloned();
    }

    fn step(&mut self, tensor: StreamedId) {
        let before = self.recorded.last().copied();
        if self.recorded.len() < USES_MAX {
            self.recorded.push(tensor);
        }
        let expected = self.position.map_or(0, |position| position + 1);
        let is_expected = |pass: &[StreamedId]| pass.get(expected) == Some(&tensor);
        if self.known.first().is_some_and(|pass| is_expected(pass)) {
            self.position = Some(expected);
            return;
        }
        // Another pass than the latest, or one that nobody has seen: go on where the same two follow each other.
        let follows = |pass: &[StreamedId], at: usize| pass[at] == tensor && (at == 0 || Some(pass[at - 1]) == before);
        let place = |pass: &[StreamedId]| (0..pass.len()).find(|&at| follows(pass, at));
        if let Some((index, at)) = self.known.iter().enumerate().find_map(|(i, pass)| Some((i, place(pass)?))) {
            self.known[..=index].rotate_right(1);
            self.position = Some(at);
            return;
        }
        let anywhere = |pass: &Arc<[StreamedId]>| pass.iter().position(|&other| other == tensor);
        self.position = self.known.first().and_then(anywhere);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(order: &mut Order, walk: &mut Walk, tensors: &[usize]) -> usize {
        tensors.iter().filter(|&&tensor| order.observe(walk, StreamedId(tensor))).count()
    }

    fn after(walk: &Walk) -> Vec<usize> {
        walk.after().map(usize::from).collect()
    }

    #[test]
    fn a_pass_teaches_the_order_and_a_new_pass_replaces_it() {
        let (mut order, mut walk) = (Order::new(&[0, 1, 2, 3].map(StreamedId)), Walk::default());
        assert_eq!(observe(&mut order, &mut walk, &[2]), 1);
        assert_eq!(after(&walk), [3, 0, 1], "the likely order, for want of another");
        observe(&mut order, &mut walk, &[0, 1, 3, 2, 0]);
        assert_eq!((after(&walk), order.passes()), (vec![1, 3, 2], 2));
        observe(&mut order, &mut walk, &[3, 1, 2, 0]);
        assert_eq!((after(&walk), order.learned()), (vec![3, 1, 2], Some(&[2, 0, 3, 1].map(StreamedId)[..])));
    }

    #[test]
    fn a_tensor_may_have_several_successors_in_a_pass() {
        let (mut order, mut walk) = (Order::new(&[0, 1, 2].map(StreamedId)), Walk::default());
        // Two loops over 0 and 1, the second of which ends with 2.
        let pass = [0, 1, 0, 1, 2];
        let mut begun = 0;
        for _ in 0..3 {
            walk.begin_pass();
            begun += observe(&mut order, &mut walk, &pass);
        }
        assert_eq!((begun, order.passes()), (3, 3), "the first tensor begins no pass by being used again");
        walk.begin_pass();
        let mut expected: Vec<usize> = pass.to_vec();
        for tensor in pass {
            order.observe(&mut walk, StreamedId(tensor));
            expected.rotate_left(1);
            assert_eq!(after(&walk), expected[..4]);
        }
    }

    #[test]
    fn a_user_that_does_not_tell_begins_with_the_first_tensor() {
        let (mut order, mut walk) = (Order::new(&[0, 1].map(StreamedId)), Walk::default());
        assert_eq!(observe(&mut order, &mut walk, &[0, 1, 0, 1, 0]), 3);
    }

    #[test]
    fn users_at_the_same_time_learn_their_own_order() {
        let mut order = Order::new(&[2, 0, 1].map(StreamedId));
        let (mut one, mut other) = (Walk::default(), Walk::default());
        for (mine, theirs) in [(0, 2), (1, 0), (2, 1), (0, 2), (1, 0)] {
            order.observe(&mut one, StreamedId(mine));
            order.observe(&mut other, StreamedId(theirs));
        }
        assert_eq!((after(&one), after(&other)), (vec![2, 0], vec![1, 2]));
    }

    #[test]
    fn passes_of_two_kinds_are_told_apart_from_where_they_differ() {
        let (mut order, mut walk) = (Order::new(&[0, 1, 2, 3].map(StreamedId)), Walk::default());
        let pass = |order: &mut Order, walk: &mut Walk, tensors: &[usize]| {
            walk.begin_pass();
            observe(order, walk, tensors);
        };
        for _ in 0..2 {
            pass(&mut order, &mut walk, &[0, 1]);
            pass(&mut order, &mut walk, &[2, 3, 1]);
        }
        pass(&mut order, &mut walk, &[0]);
        assert_eq!(after(&walk), [1]);
        pass(&mut order, &mut walk, &[2]);
        assert_eq!(after(&walk), [3, 1]);
    }

    #[test]
    fn whoever_never_begins_another_pass_is_not_recorded_without_end() {
        let (mut order, mut walk) = (Order::new(&[0, 1].map(StreamedId)), Walk::default());
        walk.begin_pass();
        (0..USES_MAX + 10).for_each(|_| {
            order.observe(&mut walk, StreamedId(1));
        });
        assert_eq!(walk.recorded.len(), USES_MAX);
        walk.begin_pass();
        order.observe(&mut walk, StreamedId(0));
        assert_eq!((order.learned(), after(&walk)), (None, vec![1]));
    }
}
