//! How much of a GPU's memory streamed weights may take.

use crate::config::VramSetting;

/// What is left free at least: kernels take work buffers while they run, and whoever else draws on the screen wants some.
const MARGIN_BYTES: u64 = 512 << 20;

/// And this share of all of it.
const MARGIN_SHARE: u64 = 32;

/// Whoever names a size takes the risk of this part of the margin.
const MARGIN_PART_OF_A_SIZE: u64 = 4;

/// What is held grows by this share at least: to grow, all of it is given up, and filled again.
const LEAST_GROWTH: u64 = 4;

/// What may be taken of a GPU's memory, of which so much is free after everything else of the host was allocated.
pub fn vram_budget(setting: VramSetting, free_bytes: u64, total_bytes: u64) -> u64 {
    match setting {
        VramSetting::Off => 0,
        VramSetting::Bytes(bytes) => bytes.min(free_bytes.saturating_sub(margin(setting, total_bytes))),
        VramSetting::Auto => free_bytes.saturating_sub(margin(setting, total_bytes)),
    }
}

/// What may be held from now on, of which so much is held: the same, unless others have taken half of the margin, or much more is free.
pub fn vram_budget_now(setting: VramSetting, held_bytes: u64, free_bytes: u64, total_bytes: u64) -> u64 {
    let budget = vram_budget(setting, held_bytes + free_bytes, total_bytes);
    let is_short = free_bytes < margin(setting, total_bytes) / 2;
    if is_short || budget > held_bytes + held_bytes / LEAST_GROWTH { budget } else { held_bytes }
}

fn margin(setting: VramSetting, total_bytes: u64) -> u64 {
    let margin = MARGIN_BYTES + total_bytes / MARGIN_SHARE;
    if matches!(setting, VramSetting::Bytes(_)) { margin / MARGIN_PART_OF_A_SIZE } else { margin }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TOTAL: u64 = 8 << 30;
    const MARGIN: u64 = 768 * MIB;

    #[test]
    fn what_is_free_but_for_a_margin_unless_the_user_says_otherwise() {
        let free = 6 << 30;
        assert_eq!(vram_budget(VramSetting::Auto, free, TOTAL), free - MARGIN);
        assert_eq!(vram_budget(VramSetting::Auto, 700 * MIB, TOTAL), 0);
        assert_eq!(vram_budget(VramSetting::Off, free, TOTAL), 0);
        assert_eq!(vram_budget(VramSetting::Bytes(2 << 30), free, TOTAL), 2 << 30);
        let most = free - MARGIN / 4;
        assert_eq!(vram_budget(VramSetting::Bytes(7 << 30), free, TOTAL), most, "what is not there cannot be had");
    }

    #[test]
    fn what_is_held_gives_way_when_half_of_the_margin_is_gone() {
        let held = 4 << 30;
        let now = |setting, free| vram_budget_now(setting, held, free, TOTAL);
        assert_eq!(now(VramSetting::Auto, MARGIN), held);
        assert_eq!(now(VramSetting::Auto, MARGIN / 2), held);
        assert_eq!(now(VramSetting::Auto, MARGIN / 2 - MIB), held - MARGIN / 2 - MIB, "the margin is free again");
        assert_eq!(vram_budget_now(VramSetting::Auto, 300 * MIB, 0, TOTAL), 0);
        let size = VramSetting::Bytes(held);
        assert_eq!(now(size, MARGIN / 2 - MIB), held, "the user has chosen");
        assert_eq!(now(size, 50 * MIB), held + 50 * MIB - MARGIN / 4);
    }

    #[test]
    fn what_is_held_grows_when_much_more_is_free() {
        let now = |held, free| vram_budget_now(VramSetting::Auto, held, free, TOTAL);
        assert_eq!(now(4 << 30, MARGIN + (1 << 30)), 4 << 30, "little is not worth it");
        assert_eq!(now(4 << 30, MARGIN + (1 << 30) + MIB), (5 << 30) + MIB);
        assert_eq!(now(0, MARGIN), 0);
        assert_eq!(now(0, MARGIN + 100 * MIB), 100 * MIB);
        assert_eq!(vram_budget_now(VramSetting::Bytes(4 << 30), 4 << 30, 3 << 30, TOTAL), 4 << 30);
        assert_eq!(vram_budget_now(VramSetting::Off, 0, TOTAL, TOTAL), 0);
    }
}
