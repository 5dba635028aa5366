//! What an item costs: computing on it, reading it, copying it to a GPU.

use super::problem::{Item, Machine, Problem, Usage};

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
fn read_bytes(item: &Item) -> f64 {
    match item.usage {
        Usage::Row(bytes) => bytes as f64,
        _ => item.slot_bytes as f64,
    }
}

impl Cost {
    pub(crate) fn of(problem: &Problem, machine: &Machine) -> Vec<Self> {
        let cost = |item: &Item| {
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
    pub(super) fn layer_seconds(&self, misses: f64) -> f64 {
        self.cpu_seconds.max(misses * self.read_seconds + self.tail_seconds * misses.min(1.0))
    }

    /// The same layer where GPUs compute with it, once its experts are there, and so many slots have to be copied for that:
    /// [`Self::layer_seconds`] is then until they are.
    pub(super) fn until_uploaded(&self, copies: f64) -> Self {
        Self { cpu_seconds: copies * self.upload_seconds, tail_seconds: self.upload_tail_seconds, ..*self }
    }

    /// The mean of [`Self::layer_seconds`] over tokens that miss so many of the `used` experts on average.
    pub(super) fn mean_layer_seconds(&self, misses: f64, used: f64) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

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
