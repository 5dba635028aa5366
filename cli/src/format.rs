//! Bytes, rates and tables for people.

/// Bytes with a unit, such as `1.50 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", figure(value), UNITS[unit])
}

/// Bytes where none is the usual case.
pub fn bytes_or_none(count: u64) -> String {
    if count == 0 { "-".to_owned() } else { bytes(count) }
}

/// Bytes per second as drives and memory are advertised: in thousands.
pub fn rate(bytes_per_second: f64) -> String {
    match bytes_per_second {
        1e9.. => format!("{} GB/s", figure(bytes_per_second / 1e9)),
        _ => format!("{} MB/s", figure(bytes_per_second / 1e6)),
    }
}

/// Three digits that matter, and all those before the point.
pub fn figure(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_owned() } else { "-".to_owned() };
    }
    let decimals = |value: f64| (2 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    // Rounding may add a digit before the point: 9.999 becomes 10.0.
    let rounded: f64 = format!("{value:.*}", decimals(value)).parse().unwrap_or(value);
    format!("{value:.*}", decimals(if rounded == 0.0 { value } else { rounded }))
}

/// A time, in the unit that suits it.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{} s", figure(seconds)),
        _ => format!("{} ms", figure(seconds * 1e3)),
    }
}

/// A share of a whole, in percent.
pub fn percent(part: u64, whole: u64) -> String {
    let share = 100.0 * part as f64 / whole as f64;
    match share {
        _ if whole == 0 => "-".to_owned(),
        _ if part > 0 && share < 0.5 => "<1%".to_owned(),
        _ => format!("{share:.0}%"),
    }
}

/// Rows in columns: the first to the left, the others to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with the names of its columns.
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|&name| name.to_owned()).collect()] }
    }

    /// Adds a row, of as many cells as the header has.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Its lines, each ended.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => line.push_str(&format!("{cell:<width$}")),
                    _ => line.push_str(&format!("  {cell:>width$}")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        assert_eq!(
            [0, 1023, 1024, 3 << 19, (1 << 30) - 1, 1 << 30, 5 << 40].map(bytes),
            ["0 B", "1023 B", "1.00 KiB", "1.50 MiB", "1024 MiB", "1.00 GiB", "5.00 TiB"]
        );
        assert_eq!(bytes_or_none(0), "-");
        assert_eq!([4.321e9, 12.3e6].map(rate), ["4.32 GB/s", "12.3 MB/s"]);
        assert_eq!(
            [0.0, 0.0123, 1.0, 9.999, 99.99, 12345.6].map(figure),
            ["0", "0.0123", "1.00", "10.0", "100", "12346"]
        );
        assert_eq!([0.0021, 2.0].map(seconds), ["2.10 ms", "2.00 s"]);
        assert_eq!((percent(1, 3).as_str(), percent(0, 0).as_str()), ("33%", "-"));
        assert_eq!([percent(1, 1000), percent(0, 5)], ["<1%", "0%"]);
    }

    #[test]
    fn columns_line_up_also_with_letters_of_two_bytes() {
        let mut table = Table::new(&["", "size"]);
        table.row(vec!["ä".to_owned(), "1".to_owned()]);
        table.row(vec!["abc".to_owned(), "22222".to_owned()]);
        assert_eq!(table.text(), "      size\nä        1\nabc  22222\n");
    }
}
