//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::serve::KeepAlive;

/// Run language models that are larger than memory: at the drive's speed, with exactly the model's output.
#[derive(Debug, Parser)]
#[command(name = "hypura", version, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model, or a directory of models, with Ollama's and OpenAI's HTTP APIs
    Serve(Serve),
}

/// How weights are streamed, and where llama.cpp's programs are.
#[derive(Clone, Debug, Args)]
pub struct Streaming {
    /// Memory that streamed weights may occupy, such as 6G [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub ram: Option<u64>,

    /// Stream even when the model would fit into memory
    #[arg(long)]
    pub stream: bool,

    /// Directory of llama.cpp's programs [default: build/llama/bin of the checkout]
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

/// Serve a model, or a directory of models, with Ollama's and OpenAI's HTTP APIs
///
/// Clients made for Ollama work unchanged: they find it at http://127.0.0.1:11434. Requests below /v1 are OpenAI's.
/// GET /hypura is a live page, GET /metrics is for Prometheus.
#[derive(Debug, Args)]
pub struct Serve {
    /// A GGUF file (of a split model the first), or a directory of them, of which one is loaded at a time
    #[arg(value_name = "MODEL|DIR")]
    pub model: PathBuf,

    /// Address to listen on; 0.0.0.0 is all of this machine's
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,

    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 11434)]
    pub port: u16,

    /// Context of a request in tokens, unless it asks for another with num_ctx
    #[arg(long, value_name = "TOKENS", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: u32,

    /// Requests that are computed at once; each has a context of its own
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub parallel: u32,

    /// How long an idle model stays loaded: 5m, 90 (seconds), 0, or -1 for ever [default: for ever; of a directory 5m]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub keep_alive: Option<KeepAlive>,

    /// Demand this key of clients (Authorization: Bearer KEY); may be given several times
    #[arg(long = "api-key", value_name = "KEY")]
    pub api_keys: Vec<String>,

    /// Demand one of the keys in this file, one a line; unlike --api-key, it does not show in the list of processes
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Allow web pages of this origin, such as https://example.org, or * for all; this machine's own always may
    #[arg(long = "origin", value_name = "ORIGIN")]
    pub origins: Vec<String>,

    /// The largest request
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = size)]
    pub body_limit: u64,

    /// How long requests under way may take when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub shutdown_seconds: u64,

    /// Show all that llama-server logs, not only warnings
    #[arg(long, short)]
    pub verbose: bool,

    #[command(flatten)]
    pub streaming: Streaming,

    /// More arguments for llama-server, after --
    #[arg(last = true, value_name = "LLAMA_SERVER_ARGUMENT")]
    pub more: Vec<String>,
}

/// Bytes of `6G`, `800M`; the same grammar as the environment variables.
fn size(text: &str) -> Result<u64, String> {
    // The library's reader of sizes, by way of a variable; its message starts with the variable.
    let variable = ("HYPURA_RAM".to_owned(), text.to_owned());
    let config = hypura::config::Config::from_variables([variable]);
    let config = config.map_err(|error| error.message().replacen("HYPURA_RAM=", "", 1))?;
    config.ram_bytes.ok_or_else(|| "write a number with K, M, G or T, such as 6G".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(size("6G"), Ok(6 << 30));
        assert_eq!(size("6X").unwrap_err(), "6X is not a size; write a number with K, M, G or T, such as 6G");
        assert!(size("").is_err());
    }
}
