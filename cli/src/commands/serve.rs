//! `hypura serve`.

use std::time::Duration;

use crate::arguments::Serve;
use crate::{llama, serve};

/// Serves until it is told to stop.
///
/// # Errors
/// A sentence when serving cannot begin.
pub fn run(arguments: Serve) -> Result<(), String> {
    let mut keys = arguments.api_keys;
    if let Some(file) = &arguments.api_key_file {
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
        if keys.is_empty() {
            return Err(format!("{} holds no key: write one a line", file.display()));
        }
    }
    serve::run(serve::Settings {
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
        arguments: arguments.more,
        verbose: arguments.verbose,
    })
}
