//! How much memory llama-server may use for prompts that it keeps (`--cache-ram`). Its own default, 8 GiB, would leave weights
//! nothing where memory is scarce, until the system ends the process.

use super::catalog::Model;

/// llama-server's default, in MiB.
const MOST: u64 = 8192;

/// How the user says it himself: llama-server's options and its variable.
const OPTIONS: [&str; 2] = ["-cram", "--cache-ram"];
const VARIABLE: &str = "LLAMA_ARG_CACHE_RAM";

/// The limit in MiB, for a model and the memory that was available when the server started; `None` when the user has
/// set one.
pub fn limit(model: &Model, memory_bytes: u64, arguments: &[String]) -> Option<u64> {
    let is_set = arguments.iter().any(|word| OPTIONS.contains(&word.as_str())) || std::env::var_os(VARIABLE).is_some();
    (!is_set).then(|| limit_of(model.size_bytes(), memory_bytes))
}

/// Where weights are streamed, a sixteenth: each byte of it is read anew from the drive, token by token. Otherwise a quarter of
/// what weights leave, as much as contexts get.
fn limit_of(model_bytes: u64, memory_bytes: u64) -> u64 {
    let is_streamed = model_bytes > memory_bytes / 4 * 3;
    let bytes = if is_streamed { memory_bytes / 16 } else { (memory_bytes - model_bytes) / 4 };
    (bytes >> 20).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn prompts_leave_weights_most_of_the_memory() {
        assert_eq!(limit_of(40 * GIB, 16 * GIB), 1024);
        assert_eq!(limit_of(4 * GIB, 16 * GIB), 3072);
        assert_eq!(limit_of(GIB, 256 * GIB), 8192, "no more than ever");
        assert_eq!(limit_of(GIB, 10 << 20), 0, "none at all");
    }
}
