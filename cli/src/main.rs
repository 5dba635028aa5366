//! `hypura`: runs, plans for, measures and serves models that are larger than memory.

mod arguments;
mod bench;
mod commands;
mod curve;
mod drive;
mod foreground;
mod format;
#[cfg(test)]
#[path = "../../tests/common/gguf_writer.rs"]
mod gguf_writer;
mod hub;
mod kv_cache;
mod llama;
mod log_lines;
mod model_file;
mod model_kind;
mod model_paths;
mod output;
mod picture;
mod placement;
mod process;
mod progress;
mod projector;
mod rates;
mod scratch;
mod serve;
mod shortlist;
mod status_line;
mod streaming;
mod terminal;
#[cfg(test)]
mod test_gguf;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Inspect(inspect) => commands::inspect::run(&inspect),
        Command::Plan(plan) => commands::plan::run(&plan),
        Command::Profile(profile) => commands::profile::run(&profile),
        Command::Pull(pull) => commands::pull::run(&pull),
        Command::Run(run) => commands::run::run(run),
        Command::Chat(chat) => commands::chat::run(chat),
        Command::Serve(serve) => commands::serve::run(serve),
        Command::Bench(bench) => commands::bench::run(bench),
        Command::Replay(replay) => commands::replay::run(&replay),
        Command::Completions(completions) => commands::completions::run(&completions, Arguments::command()),
        Command::Man(man) => commands::man::run(&man, Arguments::command()),
    };
    done.unwrap_or_else(|problem| {
        eprintln!("hypura: {problem}");
        ExitCode::FAILURE
    })
}
