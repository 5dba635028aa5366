//! `hypura`: serves models that are larger than memory.

mod arguments;
mod commands;
mod format;
mod llama;
mod model_file;
mod serve;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Serve(serve) => commands::serve::run(serve),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("hypura: {problem}");
            ExitCode::FAILURE
        }
    }
}
