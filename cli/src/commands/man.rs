//! `hypura man`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_mangen::Man as Page;

use crate::output;

const EXAMPLES: &str = "\
Examples:
  hypura man | man -l -                           read it
  hypura man plan | man -l -                      the page of one command
  hypura man --dir ~/.local/share/man/man1        write all pages
";

/// Print or write the manual pages
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Man {
    /// The command whose page to print [default: hypura's own]
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    pub command: Option<String>,

    /// Write all pages into this directory
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Prints a page or writes all, of the command line `hypura`.
///
/// # Errors
/// When there is no such command, or a page cannot be written.
pub fn run(arguments: &Man, mut hypura: Command) -> Result<ExitCode, String> {
    hypura.build();
    if let Some(directory) = &arguments.dir {
        std::fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(hypura, directory))
            .map_err(|error| format!("cannot write to {}: {error}; name another directory", directory.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let command = match &arguments.command {
        None => hypura,
        Some(name) => {
            let names: Vec<&str> = hypura.get_subcommands().map(Command::get_name).collect();
            let unknown = format!("there is no command {name}; there are {}", names.join(", "));
            hypura.find_subcommand(name).cloned().ok_or(unknown)?
        }
    };
    let mut page = Vec::new();
    Page::new(command).render(&mut page).map_err(|error| format!("the page cannot be made: {error}"))?;
    output::print(&String::from_utf8_lossy(&page))?;
    Ok(ExitCode::SUCCESS)
}
