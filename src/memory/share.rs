//! One budget for all models of a process.

use typed_index_collections::TiSlice;

use crate::index::PoolId;
use crate::plan::{SlotClass, minimum_bytes};

/// What a model can do with memory for its streamed weights, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// It cannot run with less.
    pub least: u64,
    /// It has no use for more.
    pub most: u64,
}

impl Claim {
    /// Of a model whose blocks come in these classes.
    pub fn of(classes: &TiSlice<PoolId, SlotClass>) -> Self {
        let most = classes.iter().map(|class| class.slot_bytes * class.block_count as u64).sum();
        Self { least: minimum_bytes(classes), most }
    }
}

/// Divides `total_bytes` among models: each gets the same, but no less than it needs and no more than it can use. A
/// small draft model, which runs many times for one pass of its large one, thus gets all it wants. The sum exceeds
/// `total_bytes` only when what the models need at least does.
pub fn share(total_bytes: u64, claims: &[Claim]) -> Vec<u64> {
    let at_level = |level: u64| claims.iter().map(move |claim| level.clamp(claim.least, claim.most.max(claim.least)));
    // The highest level that fits, by bisection: the sum only grows with it.
    let (mut fits, mut too_high) = (0, total_bytes.saturating_add(1));
    while too_high - fits > 1 {
        let middle = fits + (too_high - fits) / 2;
        match at_level(middle).fold(0, u64::saturating_add) <= total_bytes {
            true => fits = middle,
            false => too_high = middle,
        }
    }
    at_level(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Claim = Claim { least: 10, most: 1000 };
    const DRAFT: Claim = Claim { least: 5, most: 60 };

    #[test]
    fn the_small_one_gets_all_it_can_use_before_the_large_one_gets_more() {
        assert_eq!(share(500, &[TARGET, DRAFT]), [440, 60]);
        assert_eq!(share(100, &[TARGET, DRAFT]), [50, 50]);
        assert_eq!(share(2000, &[TARGET, DRAFT]), [1000, 60]);
        assert_eq!(share(500, &[TARGET]), [500]);
        assert_eq!(share(500, &[]), [0; 0]);
    }

    #[test]
    fn nobody_gets_less_than_it_needs() {
        assert_eq!(share(0, &[TARGET, DRAFT]), [10, 5]);
        assert_eq!(share(16, &[TARGET, DRAFT]), [10, 6]);
        let equal = Claim { least: 7, most: 7 };
        assert_eq!(share(100, &[equal, TARGET]), [7, 93]);
    }
}
