//! A line at the bottom of the terminal that stays there while text scrolls above it.
//!
//! The terminal is told to scroll all rows but the last. Whoever writes meanwhile, a child included, needs to know
//! nothing of it.

use std::io::{IsTerminal, Stderr, Write};

use crate::terminal::size;

/// The line. It goes when this is dropped.
#[derive(Debug)]
pub struct StatusLine {
    output: Stderr,
    columns: usize,
    rows: usize,
}

/// In fewer rows there is no room for it.
const ROWS_MIN: usize = 6;

impl StatusLine {
    /// Makes room on standard error; `None` where that is no terminal, or a small or simple one.
    pub fn begin() -> Option<Self> {
        let output = std::io::stderr();
        let is_dumb = std::env::var("TERM").is_ok_and(|name| name == "dumb");
        if !output.is_terminal() || is_dumb {
            return None;
        }
        let (columns, rows) = size(&output).filter(|(_, rows)| *rows >= ROWS_MIN)?;
        let mut line = Self { output, columns, rows };
        line.write(&reserve(rows));
        Some(line)
    }

    /// Shows a text.
    pub fn draw(&mut self, text: &str) {
        // The window may have another size by now.
        if let Some((columns, rows)) = size(&self.output).filter(|(_, rows)| *rows >= ROWS_MIN) {
            if rows != self.rows {
                self.write(&reserve(rows));
            }
            (self.columns, self.rows) = (columns, rows);
        }
        let shown: String = format!(" hypura: {text}").chars().take(self.columns.saturating_sub(1)).collect();
        self.write(&format!("\x1b7\x1b[{};1H\x1b[2K\x1b[2m{shown}\x1b[0m\x1b8", self.rows));
    }

    /// One write, so that nobody else's text comes in between. A terminal that is gone takes nothing, which is no harm.
    fn write(&mut self, text: &str) {
        let _ = self.output.write_all(text.as_bytes());
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.write(&format!("\x1b7\x1b[r\x1b[{};1H\x1b[2K\x1b8", self.rows));
    }
}

/// Makes sure that the cursor is not in the last row, and keeps that out of scrolling.
fn reserve(rows: usize) -> String {
    format!("\n\x1b7\x1b[1;{}r\x1b8\x1b[1A", rows - 1)
}
