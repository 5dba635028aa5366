//! What the terminal can show: colours, and how much fits.

use std::io::IsTerminal;
use std::os::fd::AsFd;

/// How to draw on an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Whether colours may be used.
    pub colours: bool,
    /// Characters in a line.
    pub columns: usize,
}

/// Where the output is no terminal: a width that mails and documents hold.
const COLUMNS_DEFAULT: usize = 100;

impl Terminal {
    /// Standard output's.
    pub fn of_output() -> Self {
        let output = std::io::stdout();
        let columns = size(&output).map_or(COLUMNS_DEFAULT, |(columns, _)| columns);
        let no_color = std::env::var("NO_COLOR").is_ok_and(|value| !value.is_empty());
        let is_dumb = std::env::var("TERM").is_ok_and(|name| name == "dumb");
        Self { colours: output.is_terminal() && !no_color && !is_dumb, columns }
    }

    /// A text in one of the terminal's own colours (ANSI 30 to 37, 90 to 97), or as it is.
    pub fn paint(&self, text: &str, colour: u8) -> String {
        if self.colours && !text.is_empty() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Columns and rows of a terminal; `None` when it is none, or does not tell.
pub fn size(output: &impl AsFd) -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(output).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_only_where_they_are_wanted() {
        let terminal = Terminal { colours: true, columns: 80 };
        assert_eq!(terminal.paint("x", 34), "\x1b[34mx\x1b[0m");
        assert_eq!(terminal.paint("", 34), "");
        assert_eq!(Terminal { colours: false, ..terminal }.paint("x", 34), "x");
    }
}
