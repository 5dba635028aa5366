//! A placement as a picture: a row a layer, a colour a tier.

use crate::format::bytes;
use crate::placement::Tiers;
use crate::terminal::Terminal;

/// A tier's name, its character, which tells it from others where there are no colours, and its colour.
const TIERS: [(&str, char, u8); 3] = [("GPU", '▓', 32), ("RAM", '█', 34), ("drive", '░', 33)];

/// Longer bars tell no more.
const BAR_COLUMNS_MAX: usize = 64;

/// The rows, and a line that explains them. Lengths are bytes; the longest layer fills the width.
pub fn picture(layers: &[(Option<u32>, Tiers)], terminal: Terminal) -> String {
    let longest = layers.iter().filter(|(layer, _)| layer.is_some()).map(|(_, tiers)| tiers.total()).max();
    let longest = longest.or_else(|| layers.iter().map(|(_, tiers)| tiers.total()).max()).unwrap_or(0).max(1);
    // The name of a layer, its size, and what is between them.
    let columns = terminal.columns.saturating_sub(24).clamp(10, BAR_COLUMNS_MAX);
    let mut text = String::new();
    for (layer, tiers) in layers {
        let name = layer.map_or("other".to_owned(), |layer| layer.to_string());
        let is_cut = tiers.total() > longest;
        let bar = bar(tiers, longest.max(tiers.total()), columns);
        let drawn = bar
            .iter()
            .zip(TIERS)
            .map(|(count, (_, character, colour))| terminal.paint(&character.to_string().repeat(*count), colour));
        let padding = " ".repeat(columns - bar.iter().sum::<usize>());
        // What is outside the layers may be larger than any of them; its bar then shows shares only.
        let mark = if is_cut { " *" } else { "" };
        text.push_str(&format!("{name:>6} {}{padding} {:>9}{mark}\n", drawn.collect::<String>(), bytes(tiers.total())));
    }
    let used = TIERS.iter().zip(sums(layers)).filter(|(_, bytes)| *bytes > 0);
    let key = used.map(|((name, character, colour), bytes_of)| {
        format!("{} {name} {}", terminal.paint(&character.to_string(), *colour), bytes(bytes_of))
    });
    let cut = if layers.iter().any(|(_, tiers)| tiers.total() > longest) { "   * not to scale" } else { "" };
    text.push_str(&format!("{:>6} {}{cut}\n", "", key.collect::<Vec<_>>().join("   ")));
    text
}

fn sums(layers: &[(Option<u32>, Tiers)]) -> [u64; 3] {
    let sum = |part: fn(&Tiers) -> u64| layers.iter().map(|(_, tiers)| part(tiers)).sum();
    [sum(|tiers| tiers.gpu), sum(|tiers| tiers.ram), sum(|tiers| tiers.drive)]
}

/// Characters for each tier: in proportion to the bytes, at least one for a tier that has any, together no more than
/// `columns`.
fn bar(tiers: &Tiers, longest: u64, columns: usize) -> [usize; 3] {
    let parts = [tiers.gpu, tiers.ram, tiers.drive];
    let exact = parts.map(|bytes| bytes as f64 / longest as f64 * columns as f64);
    let mut counts = [0; 3];
    for (count, (bytes, exact)) in counts.iter_mut().zip(parts.iter().zip(exact)) {
        *count = if *bytes > 0 { (exact.round() as usize).max(1) } else { 0 };
    }
    while counts.iter().sum::<usize>() > columns {
        // The largest gives most easily.
        if let Some(count) = counts.iter_mut().max() {
            *count -= 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Terminal = Terminal { colours: false, columns: 44 };

    #[test]
    fn a_row_a_layer() {
        let layers = [
            (Some(0), Tiers { gpu: 0, ram: 1024, drive: 1024 }),
            (Some(1), Tiers { gpu: 1024, ram: 0, drive: 0 }),
            (None, Tiers { gpu: 0, ram: 4096, drive: 0 }),
        ];
        let text = picture(&layers, PLAIN);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "     0 ██████████░░░░░░░░░░  2.00 KiB");
        assert_eq!(lines[1], "     1 ▓▓▓▓▓▓▓▓▓▓            1.00 KiB");
        assert_eq!(lines[2], " other ████████████████████  4.00 KiB *");
        assert_eq!(lines[3].trim(), "▓ GPU 1.00 KiB   █ RAM 5.00 KiB   ░ drive 1.00 KiB   * not to scale");
        assert_eq!(lines.len(), 4);
        assert!(!text.contains('\x1b'));
        assert!(picture(&layers, Terminal { colours: true, ..PLAIN }).contains("\x1b[34m██████████\x1b[0m\x1b[33m░"));
    }

    #[test]
    fn small_parts_show_and_bars_never_overflow() {
        for (ram, drive) in [(1, 1_000_000), (1_000_000, 1), (500_000, 500_001), (3, 3), (0, 0)] {
            let tiers = Tiers { gpu: u64::from(ram > 0), ram, drive };
            let counts = bar(&tiers, tiers.total().max(1), 10);
            assert!(counts.iter().sum::<usize>() <= 10, "{counts:?}");
            assert_eq!(counts.map(|count| count > 0), [ram > 0, ram > 0, drive > 0]);
        }
    }
}
