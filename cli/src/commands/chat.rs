//! `hypura chat`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::run::Front;
use crate::model_file::ModelFile;

const EXAMPLES: &str = "\
Examples:
  hypura chat big-model.gguf
  hypura chat big-model.gguf --system 'Answer in one sentence.'
  hypura chat big-model.gguf --ctx 16384 -- --temp 0.2
  hypura chat big-model.gguf --mmproj eyes.gguf   and /image picture.jpg in the conversation
";

/// Talk with a model
///
/// llama-cli has the conversation; /exit or Ctrl+C ends it. In a terminal a line at the bottom shows how streaming
/// goes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Chat {
    /// A GGUF file; of a split model the first
    pub model: PathBuf,

    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    #[command(flatten)]
    pub front: Front,
}

/// Talks until the user ends it.
///
/// # Errors
/// When there is no model or no program.
pub fn run(arguments: Chat) -> Result<ExitCode, String> {
    let model = ModelFile::open_named(&arguments.model)?;
    if model.chat_template().is_none() {
        eprintln!("hypura: this model has no chat template; llama.cpp takes a general one");
    }
    let mut words = vec!["--model".to_owned(), arguments.model.to_string_lossy().into_owned()];
    if let Some(projector) = arguments.front.projector.of(&arguments.model, &model)? {
        words.extend(["--mmproj".to_owned(), projector.path.to_string_lossy().into_owned()]);
    }
    if let Some(system) = arguments.system {
        words.extend(["--system-prompt".to_owned(), system]);
    }
    arguments.front.program("llama-cli", words, true)?.run()
}
