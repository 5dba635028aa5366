//! How much of a GPU's memory streamed weights may take.

use crate::config::VramSetting;

/// What is left free at least: kernels take work buffers while they run, and whoever else draws on the screen wants some.
const MARGIN_BYTES: u64 = 512 << 20;

/// And this share of all of it.
const MARGIN_SHARE: u64 = 32;

/// What may be taken of a GPU's memory, of which so much is free after everything else of the host was allocated.
pub fn vram_budget(setting: VramSetting, free_bytes: u64, total_bytes: u64) -> u64 {
    match setting {
        VramSetting::Off => 0,
        VramSetting::Bytes(bytes) => bytes.min(free_bytes),
        VramSetting::Auto => free_bytes.saturating_sub(MARGIN_BYTES + total_bytes / MARGIN_SHARE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_but_for_a_margin_unless_the_user_says_otherwise() {
        let (free, total) = (6 << 30, 8 << 30);
        assert_eq!(vram_budget(VramSetting::Auto, free, total), free - (512 << 20) - (256 << 20));
        assert_eq!(vram_budget(VramSetting::Auto, 700 << 20, total), 0);
        assert_eq!(vram_budget(VramSetting::Off, free, total), 0);
        assert_eq!(vram_budget(VramSetting::Bytes(2 << 30), free, total), 2 << 30);
        assert_eq!(vram_budget(VramSetting::Bytes(7 << 30), free, total), free, "what is not there cannot be had");
    }
}
