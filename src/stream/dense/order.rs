//! The order in which tensors are used, learned from use.
//!
//! Nothing in a file tells it: names suggest gate before up, and some graphs run up first. A guess serves the first pass;
//! that pass teaches the order, and a pass in another order teaches the new one.

/// For every tensor, which one was used after it.
#[derive(Debug)]
pub struct Order {
    successor: Vec<usize>,
    /// The tensor that a pass begins with: the first one ever used.
    first: Option<usize>,
    passes: u64,
}

impl Order {
    /// Starts from a guess: all tensors, each once, in the likely order.
    pub fn new(likely: &[usize]) -> Self {
        let mut successor = vec![0; likely.len()];
        for (index, &tensor) in likely.iter().enumerate() {
            successor[tensor] = likely[(index + 1) % likely.len()];
        }
        Self { successor, first: None, passes: 0 }
    }

    /// A tensor is used now, after another one by the same user. Users that work at the same time each have a `previous` of
    /// their own, so they do not teach each other's interleaving.
    pub fn observe(&mut self, previous: Option<usize>, tensor: usize) {
        if *self.first.get_or_insert(tensor) == tensor {
            self.passes += 1;
        }
        if let Some(previous) = previous {
            self.successor[previous] = tensor;
        }
    }

    /// Whether a pass begins with this tensor.
    pub fn is_first(&self, tensor: usize) -> bool {
        self.first == Some(tensor)
    }

    /// The tensor that passes begin with.
    pub fn first(&self) -> Option<usize> {
        self.first
    }

    /// How many passes have begun.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// What follows a tensor, nearest first, across the end of the pass and up to the tensor itself.
    pub fn after(&self, tensor: usize) -> impl Iterator<Item = usize> + '_ {
        let limit = self.successor.len();
        std::iter::successors(Some(self.successor[tensor]), |&next| Some(self.successor[next]))
            .take_while(move |&next| next != tensor)
            .take(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(order: &mut Order, tensors: &[usize]) {
        let mut previous = None;
        for &tensor in tensors {
            order.observe(previous.replace(tensor), tensor);
        }
    }

    #[test]
    fn a_pass_teaches_the_order_and_a_new_pass_replaces_it() {
        let mut order = Order::new(&[0, 1, 2, 3]);
        assert_eq!(order.after(2).collect::<Vec<_>>(), [3, 0, 1]);
        observe(&mut order, &[2, 0, 1, 3, 2, 0, 1, 3]);
        assert_eq!(order.after(1).collect::<Vec<_>>(), [3, 2, 0]);
        assert_eq!(order.passes(), 2);
        observe(&mut order, &[0, 1, 2, 3, 0]);
        assert_eq!(order.after(1).collect::<Vec<_>>(), [2, 3, 0]);
    }

    #[test]
    fn users_at_the_same_time_learn_one_order() {
        let mut order = Order::new(&[2, 0, 1]);
        let (mut one, mut other) = (None, None);
        for (mine, theirs) in [(0, 2), (1, 0), (2, 1), (0, 2)] {
            order.observe(one.replace(mine), mine);
            order.observe(other.replace(theirs), theirs);
        }
        assert_eq!(order.after(0).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_loop_that_misses_the_start_ends() {
        let mut order = Order::new(&[0, 1, 2]);
        observe(&mut order, &[0, 1, 2, 1]);
        assert_eq!(order.after(0).count(), 3);
    }
}
