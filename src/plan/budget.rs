//! Dividing the memory budget among the pools.

use crate::error::{Error, ErrorCode, Result};

/// The slots of one size that a model could use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotClass {
    /// Bytes of one slot: a block with room for direct I/O's alignment.
    pub slot_bytes: u64,
    /// Blocks that share these slots.
    pub block_count: usize,
}

impl SlotClass {
    /// Two: one block is computed on while the next is read.
    fn minimum_slots(self) -> usize {
        self.block_count.min(2)
    }
}

/// The smallest budget that works, in bytes.
pub fn minimum_bytes(classes: &[SlotClass]) -> u64 {
    classes.iter().map(|class| class.slot_bytes * class.minimum_slots() as u64).sum()
}

/// Slots per class under a budget: every class its minimum, and beyond that the same share of its blocks, so that no
/// layer is favoured for being quantised differently.
///
/// # Errors
/// `Budget` when the budget is below [`minimum_bytes`]; the message names it.
pub fn distribute(budget_bytes: u64, classes: &[SlotClass]) -> Result<Vec<usize>> {
    let minimum = minimum_bytes(classes);
    if budget_bytes < minimum {
        return Err(Error::new(
            ErrorCode::Budget,
            format!(
                "{} KiB of memory for weights is too little for this model: {} KiB is the smallest that works \
                 (HYPURA_RAM={}K)",
                budget_bytes >> 10,
                minimum.div_ceil(1 << 10),
                minimum.div_ceil(1 << 10)
            ),
        ));
    }
    let mut slots: Vec<usize> = classes.iter().map(|class| class.minimum_slots()).collect();
    let mut left = budget_bytes - minimum;
    let total: u64 = classes.iter().map(|class| class.slot_bytes * class.block_count as u64).sum();
    let share = budget_bytes as f64 / total.max(1) as f64;
    for (slots, class) in slots.iter_mut().zip(classes) {
        let target = ((share * class.block_count as f64) as usize).min(class.block_count);
        let extra = (target.saturating_sub(*slots) as u64).min(left / class.slot_bytes);
        *slots += extra as usize;
        left -= extra * class.slot_bytes;
    }
    // Rounding leaves less than a slot or so per class: it goes where the share is smallest.
    while let Some(poorest) = (0..classes.len())
        .filter(|&index| slots[index] < classes[index].block_count && classes[index].slot_bytes <= left)
        .min_by(|&one, &other| {
            let share = |index: usize| slots[index] as f64 / classes[index].block_count as f64;
            share(one).total_cmp(&share(other))
        })
    {
        slots[poorest] += 1;
        left -= classes[poorest].slot_bytes;
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: [SlotClass; 3] = [
        SlotClass { slot_bytes: 1000, block_count: 60 },
        SlotClass { slot_bytes: 1500, block_count: 20 },
        SlotClass { slot_bytes: 10, block_count: 1 },
    ];

    #[test]
    fn every_budget_is_kept_and_nearly_used() {
        let total: u64 = CLASSES.iter().map(|class| class.slot_bytes * class.block_count as u64).sum();
        for budget in minimum_bytes(&CLASSES)..total + 10 {
            let slots = distribute(budget, &CLASSES).unwrap();
            let used: u64 = slots.iter().zip(CLASSES).map(|(&slots, class)| slots as u64 * class.slot_bytes).sum();
            assert!(used <= budget && budget.min(total) - used < 1500, "{budget}: {slots:?}");
            assert!(slots.iter().zip(CLASSES).all(|(&slots, class)| slots >= class.minimum_slots()));
        }
    }

    #[test]
    fn the_refusal_names_the_budget_that_would_do() {
        let minimum = minimum_bytes(&CLASSES);
        assert_eq!(minimum, 2 * 1000 + 2 * 1500 + 10);
        let error = distribute(minimum - 1, &CLASSES).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Budget);
        assert!(error.message().contains("HYPURA_RAM=5K"), "{error}");
    }
}
