//! Options that several commands share: how weights are streamed, where llama.cpp is, and sizes as people write them.

use std::path::PathBuf;

use clap::Args;

/// How weights are streamed, and where llama.cpp's programs are.
#[derive(Clone, Debug, Args)]
pub struct Streaming {
    /// Memory that streamed weights may occupy, such as 6G [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub ram: Option<u64>,

    /// Stream even when the model would fit into memory
    #[arg(long)]
    pub stream: bool,

    /// Directory of llama.cpp's programs [default: beside this program, build/llama/bin of the checkout, or the search
    /// path]
    #[arg(long, value_name = "DIR")]
    pub llama: Option<PathBuf>,
}

impl Streaming {
    /// The environment variables that say the same to libhypura.
    pub fn environment(&self) -> Vec<(String, String)> {
        let ram = self.ram.map(|bytes| ("HYPURA_RAM".to_owned(), bytes.to_string()));
        let stream = self.stream.then(|| ("HYPURA".to_owned(), "stream".to_owned()));
        ram.into_iter().chain(stream).collect()
    }
}

/// Bytes of `6G`, `800M`; the same grammar as the environment variables.
///
/// # Errors
/// A sentence that says what may be written.
pub fn size(text: &str) -> Result<u64, String> {
    // The library's reader of sizes, by way of a variable; its message starts with the variable.
    let variable = ("HYPURA_RAM".to_owned(), text.to_owned());
    let config = hypura::config::Config::from_variables([variable]);
    let config = config.map_err(|error| error.message().replacen("HYPURA_RAM=", "", 1))?;
    config.ram_bytes.ok_or_else(|| "write a number with K, M, G or T, such as 6G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("6G"), Ok(6 << 30));
        assert_eq!(size("6X").unwrap_err(), "6X is not a size; write a number with K, M, G or T, such as 6G");
        assert!(size("").is_err());
    }
}
