//! Writing to standard output. A reader that has seen enough (`| head`) is no failure.

use std::io::{ErrorKind, Write};

use serde_json::Value;

/// Prints a text as it is.
///
/// # Errors
/// A sentence when it cannot be written, such as to a full disk.
pub fn print(text: &str) -> Result<(), String> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("cannot write the result: {error}")),
        _ => Ok(()),
    }
}

/// Prints JSON, one line a field.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &Value) -> Result<(), String> {
    print(&format!("{value:#}\n"))
}
