//! The command line: the subcommands.

use clap::{Parser, Subcommand};

use crate::commands::{bench, chat, completions, inspect, man, plan, profile, pull, replay, run, serve};

const EXAMPLES: &str = "\
Examples:
  hypura plan big-model.gguf                      where the weights would be, and how fast that is
  hypura pull hf:OWNER/REPO:Q4_K_M                download a model
  hypura run big-model.gguf -p 'Why is the sky blue?'
  hypura serve big-model.gguf                     for Ollama's and OpenAI's clients

Each command tells more: hypura COMMAND --help
";

/// Run language models that are larger than memory: at the drive's speed, with exactly the model's output.
#[derive(Debug, Parser)]
#[command(name = "hypura", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands. Each one's own documentation is its help.
#[derive(Debug, Subcommand)]
pub enum Command {
    Inspect(inspect::Inspect),
    Plan(plan::Plan),
    Profile(profile::Profile),
    Pull(pull::Pull),
    Run(run::Run),
    Chat(chat::Chat),
    Serve(serve::Serve),
    Bench(bench::Bench),
    Replay(replay::Replay),
    Completions(completions::Completions),
    Man(man::Man),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
