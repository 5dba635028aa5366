//! A small curve in text: speed against memory.

use crate::format::{bytes, figure};

const ROWS: usize = 7;

/// Blocks of growing height, in eighths.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws tokens per second by bytes, as bars of one or more columns each, with a mark at `here`. The points are in
/// order and their bytes evenly spaced.
pub fn curve(points: &[(u64, f64)], here: u64, columns: usize) -> String {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return String::new() };
    let top = points.iter().map(|(_, speed)| *speed).fold(0.0, f64::max);
    if top <= 0.0 || points.len() < 2 {
        return String::new();
    }
    let width = (columns.saturating_sub(12) / points.len()).clamp(1, 3);
    let labels = [figure(top), figure(top / 2.0), "0".to_owned()];
    let margin = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(3);
    let mut text = String::new();
    for row in (0..ROWS).rev() {
        let label = match row {
            _ if row == ROWS - 1 => &labels[0],
            _ if row == ROWS / 2 => &labels[1],
            _ => "",
        };
        let bar = |(_, speed): &(u64, f64)| {
            let eighths = (speed / top * (ROWS * 8) as f64).round() as usize;
            EIGHTHS[eighths.saturating_sub(row * 8).min(8)].to_string().repeat(width)
        };
        let bars: String = points.iter().map(bar).collect();
        text.push_str(&format!("{label:>margin$} │{}\n", bars.trim_end()));
    }
    let length = points.len() * width;
    text.push_str(&format!("{:>margin$} └{}\n", labels[2], "─".repeat(length)));
    let (start, end) = (bytes(first.0), bytes(last.0));
    let share = (here.clamp(first.0, last.0) - first.0) as f64 / (last.0 - first.0).max(1) as f64;
    let place = (share * (length - 1) as f64).round() as usize;
    text.push_str(&format!("{:margin$}  {}▲ {}\n", "", " ".repeat(place), bytes(here)));
    let gap = length.saturating_sub(start.len() + end.len()).max(2);
    text.push_str(&format!("{:margin$}  {start}{}{end}\n", "", " ".repeat(gap)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_with_speed_and_the_mark_is_in_its_place() {
        let points: Vec<(u64, f64)> = (0..20).map(|step| ((step + 1) << 30, step as f64 + 1.0)).collect();
        let text = curve(&points, 10 << 30, 80);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), ROWS + 3);
        assert!(lines[0].starts_with("20.0 │") && lines[0].ends_with('█'));
        let heights: Vec<usize> =
            lines[..ROWS].iter().map(|line| line.chars().filter(|c| EIGHTHS[1..].contains(c)).count()).collect();
        assert!(heights.windows(2).all(|pair| pair[0] < pair[1]), "{heights:?}");
        let mark = lines[ROWS + 1].chars().position(|c| c == '▲').unwrap();
        assert_eq!(mark, 6 + (9.0_f64 / 19.0 * 59.0).round() as usize);
        assert!(lines[ROWS + 1].ends_with("▲ 10.0 GiB"));
        assert!(lines[ROWS + 2].contains("1.00 GiB") && lines[ROWS + 2].ends_with("20.0 GiB"));
    }

    #[test]
    fn nothing_to_draw() {
        assert_eq!(curve(&[], 0, 80), "");
        assert_eq!(curve(&[(1, 5.0)], 0, 80), "");
        assert_eq!(curve(&[(1, 0.0), (2, 0.0)], 0, 80), "");
    }
}
