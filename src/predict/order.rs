//! The order in which tensors are used, learned from use.
//!
//! Nothing in a file tells it: names suggest gate before up, and some graphs run up first. One pass teaches it, and a
//! pass in another order teaches the new one.

/// For every tensor, which one was used after it.
#[derive(Debug)]
pub struct Order {
    successor: Vec<Option<usize>>,
    last: Option<usize>,
    /// The tensor that a pass begins with: the first one ever used.
    first: Option<usize>,
    passes: u64,
}

impl Order {
    /// Nothing learned yet about `count` tensors.
    pub fn new(count: usize) -> Self {
        Self { successor: vec![None; count], last: None, first: None, passes: 0 }
    }

    /// A tensor is used now. Returns the one used before it.
    pub fn observe(&mut self, tensor: usize) -> Option<usize> {
        let previous = self.last.replace(tensor);
        if *self.first.get_or_insert(tensor) == tensor {
            self.passes += 1;
        }
        if let Some(previous) = previous {
            self.successor[previous] = Some(tensor);
        }
        previous
    }

    /// Whether a pass begins with this tensor.
    pub fn is_first(&self, tensor: usize) -> bool {
        self.first == Some(tensor)
    }

    /// How many passes have begun.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// What follows a tensor, nearest first, across the end of the pass and up to the tensor itself.
    pub fn after(&self, tensor: usize) -> impl Iterator<Item = usize> + '_ {
        let limit = self.successor.len();
        std::iter::successors(self.successor[tensor], |&next| self.successor[next])
            .take_while(move |&next| next != tensor)
            .take(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_teaches_the_order_and_a_new_pass_replaces_it() {
        let mut order = Order::new(4);
        assert_eq!(order.after(2).count(), 0);
        for tensor in [2, 0, 1, 3, 2, 0, 1, 3] {
            order.observe(tensor);
        }
        assert_eq!(order.after(1).collect::<Vec<_>>(), [3, 2, 0]);
        for tensor in [0, 1, 2, 3, 0] {
            order.observe(tensor);
        }
        assert_eq!(order.after(1).collect::<Vec<_>>(), [2, 3, 0]);
    }

    #[test]
    fn a_loop_that_misses_the_start_ends() {
        let mut order = Order::new(3);
        for tensor in [0, 1, 2, 1] {
            order.observe(tensor);
        }
        assert_eq!(order.after(0).count(), 3);
    }
}
