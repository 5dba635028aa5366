//! `hypura bench`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::bench::{Effort, Subject, TOKENS_MAX, bench, chart};
use crate::model_file::ModelFile;
use crate::{llama, output, streaming};

const EXAMPLES: &str = "\
Examples:
  hypura bench big-model.gguf                     half of the model's size in memory
  hypura bench big-model.gguf --ram 8G --rounds 5
  hypura bench big-model.gguf --svg chart.svg --json > figures.json
  hypura bench small-model.gguf --ram 600M --stream --tokens 32
";

/// Measure a model: stock llama.cpp, streamed, and the physical limit
///
/// In turn, with caches dropped before each run where that is allowed: stock llama.cpp by mmap and streamed, both under
/// the same memory limit, and stock with everything in memory where that fits. The roofline is the longer of computing
/// a token and of reading what was read for it at the drive's speed, which is measured before and after each streamed
/// run. The memory limit is a cgroup, which usually takes root. Texts are compared: they must be equal.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Bench {
    /// A GGUF file; of a split model the first
    pub model: PathBuf,

    /// Memory limit of a run, such as 8G, weights and all else together [default: half of the model, at least 512M]
    #[arg(long, value_name = "SIZE", value_parser = streaming::size)]
    pub ram: Option<u64>,

    /// Tokens to generate in each run
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=i64::from(TOKENS_MAX)))]
    pub tokens: u32,

    /// Runs of each kind
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// What one run may take, loading included
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub seconds: u64,

    /// Stream even when the model fits under the limit
    #[arg(long)]
    pub stream: bool,

    /// Write a chart to this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,

    /// Print JSON; the table then goes to standard error
    #[arg(long)]
    pub json: bool,

    /// Directory of llama.cpp's programs [default: beside this program, build/llama/bin of the checkout, or the search
    /// path]
    #[arg(long, value_name = "DIR")]
    pub llama: Option<PathBuf>,

    /// More arguments for llama-server, after --, for all kinds alike
    #[arg(last = true, value_name = "LLAMA_SERVER_ARGUMENT")]
    pub more: Vec<String>,
}

/// Measures and shows.
///
/// # Errors
/// When the model or llama-server is missing, no run succeeds, or the chart cannot be written.
pub fn run(arguments: Bench) -> Result<ExitCode, String> {
    let model = ModelFile::open_named(&arguments.model)?;
    let directory = arguments.svg.as_ref().and_then(|file| file.parent()).filter(|path| !path.as_os_str().is_empty());
    if let Some(missing) = directory.filter(|path| !path.is_dir()) {
        return Err(format!("--svg: {} is not a directory; make it first", missing.display()));
    }
    let subject = Subject {
        model: arguments.model,
        program: llama::find("llama-server", arguments.llama.as_deref())?,
        tokens: arguments.tokens,
        patience: Duration::from_secs(arguments.seconds),
        stream: arguments.stream,
        more: arguments.more,
    };
    let effort = Effort { rounds: arguments.rounds, limit_bytes: arguments.ram };
    let report = bench(&model, &subject, &effort)?;
    if let Some(file) = &arguments.svg {
        std::fs::write(file, chart(&report)).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    }
    if arguments.json {
        eprint!("{}", report.text());
        output::print_json(&report.to_json())?;
    } else {
        output::print(&report.text())?;
    }
    Ok(ExitCode::SUCCESS)
}
