//! Lines of llama.cpp's log: which of them a user wants to see.

/// The level of a line of llama.cpp's log, such as `W` in `0.00.394.204 W hypura: ...`. What does not come from the
/// logger (an assertion, the dynamic linker, a crash) counts as an error.
fn level_of(line: &str) -> &str {
    match line.starts_with(|c: char| c.is_ascii_digit()) {
        true => line.split_whitespace().nth(1).unwrap_or_default(),
        false if line.trim().is_empty() => "",
        false => "E",
    }
}

/// Whether a line may tell why the process ended.
pub fn is_alarming(line: &str) -> bool {
    matches!(level_of(line), "W" | "E")
}

/// Whether a line tells of an error.
pub fn is_error(line: &str) -> bool {
    level_of(line) == "E"
}

/// Errors, and what libhypura has decided; llama.cpp's own warnings are about choices that were made for it here.
pub fn is_worth_showing(line: &str) -> bool {
    is_error(line) || message_of(line).starts_with("hypura: ")
}

/// A line without its time and level.
pub fn message_of(line: &str) -> &str {
    match line.starts_with(|c: char| c.is_ascii_digit()) {
        true => line.splitn(3, char::is_whitespace).nth(2).unwrap_or(line).trim(),
        false => line.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log() {
        let warning = "0.00.394.204 W hypura: dense-streaming";
        assert!(is_alarming(warning) && message_of(warning) == "hypura: dense-streaming");
        assert!(!is_alarming("0.00.001.158 I srv  llama_server: initializing ..."));
        assert!(is_alarming("GGML_ASSERT(x) failed") && !is_alarming(""));
        assert!(is_worth_showing(warning) && !is_worth_showing("0.00.003.768 W srv  llama_server: n_batch"));
    }
}
