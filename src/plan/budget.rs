//! Dividing the memory budget among the pools.

use typed_index_collections::{TiSlice, TiVec};

use crate::error::{Error, ErrorCode, Result};
use crate::index::PoolId;

/// The slots of one size that a model could use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotClass {
    /// Bytes of one slot: a block with room for direct I/O's alignment.
    pub slot_bytes: u64,
    /// Blocks that share these slots.
    pub block_count: usize,
    /// Whether every pass uses every block, as it does for all weights but experts.
    pub every_pass: bool,
}

impl SlotClass {
    /// The fewest that work: two, since one block is computed on while the next is read.
    pub fn minimum_slots(self) -> usize {
        self.block_count.min(2)
    }
}

/// What tables get of a budget at least: their rows pass through it.
const TABLES_BYTES_MIN: u64 = 64 << 10;

/// What they get at most. Rows that are used again are few words' worth, and the rest of the budget serves every token.
const TABLES_BYTES_MAX: u64 = 64 << 20;

/// The share of the budget that they get between these.
const TABLES_SHARE: u64 = 16;

/// What tables that are looked up can make use of, and need at least, in bytes.
pub fn tables_claim(table_bytes: u64) -> (u64, u64) {
    if table_bytes == 0 { (0, 0) } else { (TABLES_BYTES_MIN, TABLES_BYTES_MIN.max(table_bytes.min(TABLES_BYTES_MAX))) }
}

/// What tables of so many bytes together get of a budget that they share with blocks in these classes.
///
/// # Errors
/// `Budget` when that is too little for both; the message names what would do.
pub fn bytes_for_tables(budget_bytes: u64, table_bytes: u64, classes: &TiSlice<PoolId, SlotClass>) -> Result<u64> {
    let ((least, most), minimum) = (tables_claim(table_bytes), minimum_bytes(classes));
    if budget_bytes < minimum + least {
        return Err(too_little(budget_bytes, minimum + least));
    }
    // And what blocks have no use for.
    let left = budget_bytes.saturating_sub(maximum_bytes(classes));
    Ok((budget_bytes / TABLES_SHARE).max(left).clamp(least, most).min(budget_bytes - minimum))
}

fn too_little(budget_bytes: u64, minimum: u64) -> Error {
    Error::new(
        ErrorCode::Budget,
        format!(
            "{} KiB of memory for weights is too little for this model: {} KiB is the smallest that works \
             (HYPURA_RAM={}K)",
            budget_bytes >> 10,
            minimum.div_ceil(1 << 10),
            minimum.div_ceil(1 << 10)
        ),
    )
}

/// The largest budget that blocks have use for, in bytes.
fn maximum_bytes(classes: &TiSlice<PoolId, SlotClass>) -> u64 {
    classes.iter().map(|class| class.slot_bytes * class.block_count as u64).sum()
}

/// The smallest budget that works, in bytes.
pub fn minimum_bytes(classes: &TiSlice<PoolId, SlotClass>) -> u64 {
    classes.iter().map(|class| class.slot_bytes * class.minimum_slots() as u64).sum()
}

/// Slots per class under a budget: every class its minimum, then what every pass uses, then experts, of which a token uses
/// few. Among classes of one kind each gets the same share of its blocks, so that no layer is favoured for being quantised
/// differently.
///
/// # Errors
/// `Budget` when the budget is below [`minimum_bytes`]; the message names it.
pub fn distribute(budget_bytes: u64, classes: &TiSlice<PoolId, SlotClass>) -> Result<TiVec<PoolId, usize>> {
    let minimum = minimum_bytes(classes);
    if budget_bytes < minimum {
        return Err(too_little(budget_bytes, minimum));
    }
    let mut slots: TiVec<PoolId, usize> = classes.iter().map(|class| class.minimum_slots()).collect();
    let mut left = budget_bytes - minimum;
    for every_pass in [true, false] {
        let kind: Vec<PoolId> = classes.keys().filter(|&pool| classes[pool].every_pass == every_pass).collect();
        left = share_out(left, classes, &kind, &mut slots);
    }
    Ok(slots)
}

/// Gives more slots to some of the classes, the same share of its blocks to each; returns the bytes that are left.
fn share_out(
    mut left: u64,
    classes: &TiSlice<PoolId, SlotClass>,
    kind: &[PoolId],
    slots: &mut TiSlice<PoolId, usize>,
) -> u64 {
    let total: u64 = kind.iter().map(|&pool| classes[pool].slot_bytes * classes[pool].block_count as u64).sum();
    let held: u64 = kind.iter().map(|&pool| classes[pool].slot_bytes * slots[pool] as u64).sum();
    let share = (left + held) as f64 / total.max(1) as f64;
    for &pool in kind {
        let class = classes[pool];
        let target = ((share * class.block_count as f64) as usize).min(class.block_count);
        let extra = (target.saturating_sub(slots[pool]) as u64).min(left / class.slot_bytes);
        slots[pool] += extra as usize;
        left -= extra * class.slot_bytes;
    }
    // Rounding leaves less than a slot or so per class: it goes where the share is smallest.
    while let Some(&poorest) = kind
        .iter()
        .filter(|&&pool| slots[pool] < classes[pool].block_count && classes[pool].slot_bytes <= left)
        .min_by(|&&one, &&other| {
            let share = |pool: PoolId| slots[pool] as f64 / classes[pool].block_count as f64;
            share(one).total_cmp(&share(other))
        })
    {
        slots[poorest] += 1;
        left -= classes[poorest].slot_bytes;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: [SlotClass; 3] = [
        SlotClass { slot_bytes: 1000, block_count: 60, every_pass: false },
        SlotClass { slot_bytes: 1500, block_count: 20, every_pass: false },
        SlotClass { slot_bytes: 10, block_count: 1, every_pass: false },
    ];

    fn of(classes: &[SlotClass]) -> &TiSlice<PoolId, SlotClass> {
        TiSlice::from_ref(classes)
    }

    #[test]
    fn every_budget_is_kept_and_nearly_used() {
        let total: u64 = CLASSES.iter().map(|class| class.slot_bytes * class.block_count as u64).sum();
        for budget in minimum_bytes(of(&CLASSES))..total + 10 {
            let slots = distribute(budget, of(&CLASSES)).unwrap();
            let used: u64 = slots.iter().zip(CLASSES).map(|(&slots, class)| slots as u64 * class.slot_bytes).sum();
            assert!(used <= budget && budget.min(total) - used < 1500, "{budget}: {slots:?}");
            assert!(slots.iter().zip(CLASSES).all(|(&slots, class)| slots >= class.minimum_slots()));
        }
    }

    #[test]
    fn tables_get_a_share_beside_blocks_and_all_they_can_use_without() {
        const MIB: u64 = 1 << 20;
        let tables = |budget: u64, classes: &[SlotClass]| bytes_for_tables(budget, 1 << 40, of(classes)).unwrap();
        let large = [SlotClass { slot_bytes: MIB, block_count: 1 << 20, every_pass: false }];
        assert_eq!(tables(160 * MIB, &large), 10 * MIB);
        assert_eq!(tables(16 << 30, &large), TABLES_BYTES_MAX);
        assert_eq!(tables(40 * MIB, &CLASSES), 40 * MIB - maximum_bytes(of(&CLASSES)), "blocks have no use for more");
        assert_eq!(tables(40 * MIB, &[]), 40 * MIB);
        assert_eq!(tables(1 << 30, &[]), TABLES_BYTES_MAX);
        assert_eq!(bytes_for_tables(1 << 30, 0, of(&[])).unwrap(), 0);
    }

    #[test]
    fn what_every_pass_uses_comes_before_experts() {
        let dense = SlotClass { slot_bytes: 100, block_count: 10, every_pass: true };
        let experts = SlotClass { slot_bytes: 10, block_count: 1000, every_pass: false };
        assert_eq!(distribute(520, of(&[experts, dense])).unwrap().raw, [2, 5]);
        assert_eq!(distribute(1520, of(&[experts, dense])).unwrap().raw, [52, 10]);
    }

    #[test]
    fn the_refusal_names_the_budget_that_would_do() {
        let minimum = minimum_bytes(of(&CLASSES));
        assert_eq!(minimum, 2 * 1000 + 2 * 1500 + 10);
        let error = distribute(minimum - 1, of(&CLASSES)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Budget);
        assert!(error.message().contains("HYPURA_RAM=5K"), "{error}");
    }
}
