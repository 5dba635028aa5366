//! `hypura completions`.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::output;

const EXAMPLES: &str = "\
Examples:
  hypura completions bash > ~/.local/share/bash-completion/completions/hypura
  hypura completions zsh > \"${fpath[1]}/_hypura\"
  hypura completions fish > ~/.config/fish/completions/hypura.fish
";

/// Print completions for a shell
///
/// Put the output where the shell looks for it; a new shell then completes hypura's commands and options.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

/// Prints them, for the command line `hypura`.
///
/// # Errors
/// When they cannot be written.
pub fn run(arguments: &Completions, mut hypura: Command) -> Result<ExitCode, String> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut hypura, "hypura", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
