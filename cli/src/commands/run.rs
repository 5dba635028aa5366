//! `hypura run`.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::foreground::Foreground;
use crate::llama;
use crate::model_file::ModelFile;
use crate::projector::Choice;
use crate::streaming::Streaming;

const EXAMPLES: &str = "\
Examples:
  hypura run big-model.gguf -p 'Why is the sky blue?'
  hypura run big-model.gguf -p - < question.txt   the prompt from a file or a pipe
  hypura run big-model.gguf --raw -n 64 -p 'Once upon a time'
  hypura run big-model.gguf --image picture.jpg -p 'What is to be seen?'
  hypura run big-model.gguf --ram 6G -p Hello -- --temp 0 -t 8
";

/// Answer one prompt
///
/// llama-completion computes the answer, with the model's own chat template where it has one; about pictures
/// llama-mtmd-cli does. The answer goes to standard output; in a terminal a line at the bottom shows how streaming goes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Run {
    /// A GGUF file; of a split model the first
    pub model: PathBuf,

    /// The prompt; - reads it from standard input
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// What the model is told before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,

    /// Continue the prompt as a text, without the chat template
    #[arg(long)]
    pub raw: bool,

    /// A picture (or sound) that the prompt is about; may be given several times. The model needs a projector
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    pub image: Vec<PathBuf>,

    /// Tokens to generate at most [default: until the model ends its answer]
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true, value_parser = tokens)]
    pub tokens: Option<u32>,

    #[command(flatten)]
    pub front: Front,
}

/// A number of tokens. llama.cpp's own programs take -1 for an answer of any length.
fn tokens(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.ok_or_else(|| "write a number of tokens from 1 on; without -n an answer may have any length".to_owned())
}

/// What `hypura run` and `hypura chat` share.
#[derive(Clone, Debug, Args)]
pub struct Front {
    /// Context in tokens, prompt and answers together
    #[arg(long, value_name = "TOKENS", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: u32,

    /// Show all that llama.cpp logs
    #[arg(long, short)]
    pub verbose: bool,

    /// Show no status line
    #[arg(long)]
    pub no_status: bool,

    #[command(flatten)]
    pub projector: Choice,

    #[command(flatten)]
    pub streaming: Streaming,

    /// More arguments for llama.cpp's program, after --
    #[arg(last = true, value_name = "LLAMA_ARGUMENT")]
    pub more: Vec<String>,
}

impl Front {
    /// The program of a name, about to be run with these arguments and those of the user.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn program(self, name: &str, mut arguments: Vec<String>, reads_input: bool) -> Result<Foreground, String> {
        arguments.extend(["--ctx-size".to_owned(), self.ctx.to_string()]);
        if !self.verbose {
            // Warnings and errors: what libhypura has decided is among the warnings.
            arguments.extend(["--log-verbosity".to_owned(), "2".to_owned()]);
        }
        arguments.extend(self.more);
        Ok(Foreground {
            program: llama::find(name, self.streaming.llama.as_deref())?,
            arguments,
            environment: self.streaming.environment(),
            reads_input,
            status: !self.no_status,
            verbose: self.verbose,
        })
    }
}

/// Answers.
///
/// # Errors
/// When there is no prompt, no model or no program.
pub fn run(arguments: Run) -> Result<ExitCode, String> {
    let model = ModelFile::open_named(&arguments.model)?;
    let prompt = read_prompt(arguments.prompt)?;
    let mut words = vec!["--model".to_owned(), arguments.model.to_string_lossy().into_owned()];
    // The prompt as it is: backslashes are the user's own.
    words.extend(["--prompt".to_owned(), prompt, "--no-escape".to_owned()]);
    let is_chat = !arguments.raw && model.chat_template().is_some();
    let program = match arguments.image.is_empty() {
        true => {
            words.push("--no-display-prompt".to_owned());
            words.push(if is_chat { "--single-turn" } else { "--no-conversation" }.to_owned());
            "llama-completion"
        }
        false => {
            words.extend(about_images(&arguments.image, &arguments.front.projector, &arguments.model, &model)?);
            "llama-mtmd-cli"
        }
    };
    if let Some(system) = arguments.system {
        if !is_chat {
            return Err("--system needs a model with a chat template; this one has none".to_owned());
        }
        words.extend(["--system-prompt".to_owned(), system]);
    }
    if let Some(tokens) = arguments.tokens {
        words.extend(["--n-predict".to_owned(), tokens.to_string()]);
    }
    arguments.front.program(program, words, false)?.run()
}

/// The arguments for a prompt about pictures.
fn about_images(images: &[PathBuf], choice: &Choice, path: &Path, model: &ModelFile) -> Result<Vec<String>, String> {
    let Some(projector) = choice.of(path, model)? else {
        return Err(format!(
            "no projector (mmproj file) that fits {} lies beside it: name it with --mmproj",
            path.display()
        ));
    };
    let mut words = vec!["--mmproj".to_owned(), projector.path.to_string_lossy().into_owned(), "--jinja".to_owned()];
    for image in images {
        if let Err(error) = std::fs::File::open(image) {
            return Err(format!("cannot read {}: {error}", image.display()));
        }
        words.extend(["--image".to_owned(), image.to_string_lossy().into_owned()]);
    }
    Ok(words)
}

fn read_prompt(given: Option<String>) -> Result<String, String> {
    let mut input = std::io::stdin();
    let prompt = match given {
        Some(text) if text != "-" => text,
        None if input.is_terminal() => return Err("there is no prompt: give one with -p TEXT".to_owned()),
        _ => {
            let mut text = String::new();
            input.read_to_string(&mut text).map_err(|error| format!("the prompt cannot be read: {error}"))?;
            text.trim_end().to_owned()
        }
    };
    if prompt.is_empty() {
        return Err("the prompt is empty: give one with -p TEXT, or -p - and a file or pipe".to_owned());
    }
    Ok(prompt)
}
