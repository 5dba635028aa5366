//! `hypura serve`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::projector::Choice;
use crate::serve::KeepAlive;
use crate::streaming::{self, Streaming};
use crate::{llama, serve};

const EXAMPLES: &str = "\
Examples:
  hypura serve big-model.gguf                     at http://127.0.0.1:11434, as Ollama
  hypura serve ~/models --keep-alive 30m          one model of many at a time, switched on request
  hypura serve big-model.gguf --ram 6G            no more than 6 GiB of streamed weights in memory
  hypura serve big-model.gguf --host 0.0.0.0 --api-key-file keys
  hypura serve big-model.gguf -- -t 8 -ngl 20     with llama-server's own arguments
";

/// Serve a model, or a directory of models, with Ollama's and OpenAI's HTTP APIs
///
/// Clients made for Ollama work unchanged: they find it at http://127.0.0.1:11434. Requests below /v1 are OpenAI's.
/// GET /hypura is a live page, GET /metrics is for Prometheus.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
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

    /// Context of a request in tokens, unless it asks for more with num_ctx [default: by memory, 4096 or more]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,

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
    #[arg(long = "origin", value_name = "ORIGIN", value_parser = origin)]
    pub origins: Vec<String>,

    /// The largest request
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = streaming::size)]
    pub body_limit: u64,

    /// Prompts that are kept on the drive from one start to the next, in the user's cache, at most; 0 keeps none
    #[arg(long, value_name = "SIZE", value_parser = streaming::size, default_value = "4G")]
    pub keep_prompts: u64,

    /// How long requests under way may take when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub shutdown_seconds: u64,

    /// Show all that llama-server logs, not only warnings
    #[arg(long, short)]
    pub verbose: bool,

    #[command(flatten)]
    pub projector: Choice,

    #[command(flatten)]
    pub streaming: Streaming,

    /// More arguments for llama-server, after --
    #[arg(last = true, value_name = "LLAMA_SERVER_ARGUMENT")]
    pub more: Vec<String>,
}

/// Serves until it is told to stop.
///
/// # Errors
/// A sentence when serving cannot begin.
pub fn run(arguments: Serve) -> Result<ExitCode, String> {
    refuse_own_options(&arguments.more)?;
    let mut keys = arguments.api_keys;
    if let Some(file) = &arguments.api_key_file {
        let text = std::fs::read_to_string(file).map_err(|error| {
            format!("cannot read {}: {error}; --api-key-file is a text file with one key a line", file.display())
        })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
        if keys.is_empty() {
            return Err(format!("{} holds no key: write one a line", file.display()));
        }
    }
    let settings = serve::Settings {
        path: arguments.model,
        host: arguments.host,
        port: arguments.port,
        context_tokens: arguments.ctx,
        parallel: arguments.parallel,
        keep_alive: arguments.keep_alive,
        keys,
        origins: arguments.origins,
        body_bytes_max: arguments.body_limit.try_into().unwrap_or(usize::MAX),
        shutdown_patience: Duration::from_secs(arguments.shutdown_seconds),
        program: llama::find("llama-server", arguments.streaming.llama.as_deref())?,
        environment: arguments.streaming.environment(),
        ram_bytes: arguments.streaming.ram,
        arguments: arguments.more,
        projector: arguments.projector,
        kept_prompt_bytes: arguments.keep_prompts,
        verbose: arguments.verbose,
    };
    serve::run(settings).map(|()| ExitCode::SUCCESS)
}

/// Reads an origin as browsers write it: a scheme, a host and perhaps a port, and nothing after that; `null` is that of sandboxed pages.
fn origin(text: &str) -> Result<String, String> {
    let origin = text.strip_suffix('/').unwrap_or(text);
    let host = origin.split_once("://").filter(|(scheme, _)| !scheme.is_empty()).map(|(_, host)| host);
    let is_named = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' ']));
    match is_named || ["*", "null"].contains(&text) {
        true => Ok(origin.to_owned()),
        false => {
            Err(format!("{text} is no origin; write one such as https://example.org, without a path, or * for all"))
        }
    }
}

/// llama-server's options that this server must choose itself, and what to write instead.
const OWN_OPTIONS: [(&[&str], &str); 11] = [
    (&["-c", "--ctx-size"], "--ctx, before --, is the context of a request"),
    (&["-np", "--parallel"], "--parallel goes before --"),
    (
        &["--host", "--port", "--reuse-port"],
        "--host and --port go before --; llama-server itself listens on a private port",
    ),
    (
        &["-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"],
        "the model is the first argument",
    ),
    (&["--models-dir", "--models-preset"], "a directory as the first argument is served, one model at a time"),
    (&["-mm", "--mmproj", "-mmu", "--mmproj-url", "--no-mmproj"], "--mmproj and --no-mmproj go before --"),
    (&["--slot-save-path"], "--keep-prompts, before --, says how much is kept; HYPURA_CACHE says where"),
    (&["-a", "--alias"], "a model is called after its file"),
    (&["--api-key", "--api-key-file"], "the same options go before --; llama-server itself has a random key"),
    (&["--api-prefix"], "a reverse proxy in front can add a prefix"),
    (&["--ssl-key-file", "--ssl-cert-file"], "a reverse proxy in front encrypts"),
];

/// Refuses what would change behind this server's back what it counts on.
fn refuse_own_options(more: &[String]) -> Result<(), String> {
    for word in more {
        if let Some((_, instead)) = OWN_OPTIONS.iter().find(|(options, _)| options.contains(&word.as_str())) {
            return Err(format!("{word} cannot be given to llama-server here: {instead}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        for (text, expected) in [
            ("https://example.org/", "https://example.org"),
            ("http://a:3000", "http://a:3000"),
            ("*", "*"),
            ("null", "null"),
        ] {
            assert_eq!(origin(text).as_deref(), Ok(expected));
        }
        for text in ["example.org", "https://", "https://a/page", "://a", "https:/a", ""] {
            assert!(origin(text).unwrap_err().contains("such as https://example.org"), "{text}");
        }
    }

    #[test]
    fn options_that_the_server_chooses_are_refused() {
        let refused =
            |words: &[&str]| refuse_own_options(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        assert!(refused(&["-np", "4"]).unwrap_err().contains("--parallel goes before --"));
        assert!(refused(&["-t", "8", "-c", "1024"]).unwrap_err().contains("--ctx"));
        assert!(refused(&["--api-prefix", "/x"]).unwrap_err().starts_with("--api-prefix cannot"));
        assert_eq!(refused(&["-t", "8", "-ngl", "20", "--chat-template-file", "x"]), Ok(()));
    }
}
