//! `hypura plan`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::plan_remote;
use crate::curve::curve;
use crate::format::{Table, bytes, bytes_or_none, figure, percent, rate, seconds};
use crate::hub::source::Source;
use crate::model_file::ModelFile;
use crate::placement::{Placement, Request, Tiers};
use crate::projector::{Choice, Projector};
use crate::terminal::Terminal;
use crate::{output, picture, streaming};

const EXAMPLES: &str = "\
Examples:
  hypura plan big-model.gguf                      on this machine, with the memory that is available
  hypura plan big-model.gguf --ram 8G --ctx 16384 and if there were 8 GiB, for a long context?
  hypura plan big-model.gguf --gpu 12G            with room for weights on a GPU
  hypura plan big-model.gguf --json | jq .plan.prediction
  hypura plan hf:OWNER/REPO:Q4_K_M                before it is downloaded: only its header is read
  hypura plan hf:OWNER/REPO --want 5              its largest model with 5 tokens a second here
";

/// Show where a model's weights would be, how fast that is, and what limits it
///
/// Nothing is loaded. Memory and drive are measured for a moment, unless that is remembered; corrections learned from earlier runs of
/// the model are applied. docs/PLANNING.md tells what is assumed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Plan {
    /// A GGUF file (of a split model the first), hf:OWNER/REPO[:QUANTISATION], or an address of a GGUF file
    pub model: PathBuf,

    /// Find the largest quantisation of a repository that reaches so many tokens per second here
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub want: Option<f64>,

    /// Memory for weights and KV cache together, such as 8G [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = streaming::size)]
    pub ram: Option<u64>,

    /// GPU memory for weights, such as 12G
    #[arg(long, value_name = "SIZE", value_parser = streaming::size, default_value = "0")]
    pub gpu: u64,

    /// Context in tokens; its keys and values take memory
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    pub ctx: u32,

    #[command(flatten)]
    pub projector: Choice,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Points of the curve: each is planned.
pub const CURVE_POINTS: usize = 24;

/// Plans and shows the plan.
///
/// # Errors
/// When the model cannot be read, or the memory is too little.
pub fn run(arguments: &Plan) -> Result<ExitCode, String> {
    if let Some(source) = arguments.model.to_str().and_then(Source::parse) {
        output::print(&plan_remote::report(arguments, &source)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.want.is_some() {
        return Err("--want chooses among the models of a repository: hypura plan hf:OWNER/REPO --want 5".to_owned());
    }
    if let Some(text) = arguments.model.to_str().filter(|text| Source::is_meant(text)) {
        return Err(Source::misspelt(text));
    }
    let model = ModelFile::open_named(&arguments.model)?;
    let projector = arguments.projector.of(&arguments.model, &model)?;
    let projector_bytes = projector.as_ref().map_or(0, Projector::size_bytes);
    let placement = Placement::find(&model, &request(arguments, projector_bytes))?;
    let speeds = placement.speed_by_ram(&model, CURVE_POINTS)?;
    if arguments.json {
        output::print_json(&to_json(&model, &placement, &speeds, arguments.ctx))?;
    } else {
        output::print(&text(&model, &placement, &speeds, arguments.ctx, Terminal::of_output()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| format!("{text} is not a number of tokens per second; write one above 0, such as 5"))
}

/// What the arguments ask of the planner, for a model with a projector of so many bytes.
pub fn request(arguments: &Plan, projector_bytes: u64) -> Request {
    Request { ram_bytes: arguments.ram, gpu_bytes: arguments.gpu, context_tokens: arguments.ctx, projector_bytes }
}

/// The plan for people.
pub fn text(
    model: &ModelFile,
    placement: &Placement,
    speeds: &[(u64, f64)],
    context: u32,
    terminal: Terminal,
) -> String {
    let (placed, tiers) = (&placement.placed, &placement.placed.tiers);
    let mut text = format!("{}\n{}\n\n", model.headline(), placed.mode.name());

    let mut table = Table::new(&["", "size", "GPU", "RAM", "drive"]);
    let mut add = |name: &str, tiers: &Tiers| {
        let cells = [tiers.gpu, tiers.ram, tiers.drive].map(bytes_or_none);
        table.row([name.to_owned(), bytes(tiers.total())].into_iter().chain(cells).collect());
    };
    placement.roles().iter().for_each(|(role, tiers)| add(role, tiers));
    add("all weights", &Tiers { gpu: tiers.gpu, ram: tiers.ram, drive: tiers.drive });
    text.push_str(&table.text());

    let used = tiers.ram + tiers.ring + placement.kv_cache_bytes + placement.projector_bytes;
    let projector = match placement.projector_bytes {
        0 => String::new(),
        taken => format!(", {} projector", bytes(taken)),
    };
    let ring = if tiers.ring > 0 { format!(", {} to stream through", bytes(tiers.ring)) } else { String::new() };
    text.push_str(&format!(
        "\nRAM {}: {} weights{ring}, {} KV cache of {context} tokens{projector}, {} free\n\n",
        bytes(placement.ram_bytes),
        bytes(tiers.ram),
        bytes(placement.kv_cache_bytes),
        bytes(placement.ram_bytes.saturating_sub(used)),
    ));

    text.push_str(&picture::picture(&placement.layers(), terminal));
    text.push_str(&format!("\n{}", expectation(placement)));
    let drawn = curve(speeds, placement.ram_bytes, terminal.columns.min(90));
    if !drawn.is_empty() {
        text.push_str(&format!("\ntokens per second by RAM for weights and KV cache\n{drawn}"));
    }
    for note in &placement.profile.notes {
        text.push_str(&format!("\nnote: {note}\n"));
    }
    text
}

/// How fast, and why not faster.
fn expectation(placement: &Placement) -> String {
    let (prediction, profile) = (&placement.placed.prediction, &placement.profile);
    let total = prediction.seconds_per_token;
    let mut text = String::new();
    let mut fact = |name: &str, value: String| text.push_str(&format!("{name:<12}{value}\n"));
    fact("expected", format!("{} tokens per second", figure(prediction.tokens_per_second())));
    let waiting = if prediction.stall_seconds > 0.005 * total {
        let share = percent((prediction.stall_seconds * 1e9) as u64, (total * 1e9) as u64);
        format!(", waiting for the drive {} ({share})", seconds(prediction.stall_seconds))
    } else {
        String::new()
    };
    fact("a token", format!("{}: computing {}{waiting}", seconds(total), seconds(prediction.compute_seconds)));
    fact("limited by", prediction.limit.name().to_owned());
    let speeds = (profile.drive_bytes_per_second, profile.memory_bytes_per_second);
    let drive = speeds.0.map_or("assumed, the model is too small to measure it".to_owned(), rate);
    let memory = speeds.1.map_or("assumed".to_owned(), rate);
    fact("reads", format!("{} a token; drive: {drive}; memory: {memory}", bytes(prediction.read_bytes as u64)));
    if placement.placed.learned.runs > 0 {
        fact("corrected", format!("by {} earlier runs of this model", placement.placed.learned.runs));
    }
    text
}

/// The plan for programs.
pub fn to_json(model: &ModelFile, placement: &Placement, speeds: &[(u64, f64)], context: u32) -> Value {
    let layers = placement.layers().into_iter().map(|(layer, tiers)| {
        json!({"layer": layer, "gpu_bytes": tiers.gpu, "ram_bytes": tiers.ram, "drive_bytes": tiers.drive})
    });
    let speeds = speeds.iter().map(|(ram, speed)| json!({"ram_bytes": ram, "tokens_per_second": speed}));
    json!({
        "name": model.title(),
        "file": model.gguf.files()[0].path,
        "weight_bytes": model.gguf.model_bytes(),
        "context_tokens": context,
        "kv_cache_bytes": placement.kv_cache_bytes,
        "projector_bytes": placement.projector_bytes,
        "ram_bytes": placement.ram_bytes,
        "plan": placement.placed.to_json(),
        "layers": layers.collect::<Vec<_>>(),
        "speed_by_ram": speeds.collect::<Vec<_>>(),
        "learned_runs": placement.placed.learned.runs,
        "machine": placement.profile.to_json(),
    })
}
