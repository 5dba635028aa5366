//! `hypura profile`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hypura::forecast::measure_memory_bandwidth;
use hypura::hw::Profile as Machine;
use serde_json::{Value, json};

use crate::drive::{self, DriveSpeed};
use crate::format::{Table, bytes, rate};
use crate::model_file::ModelFile;
use crate::model_paths::models_by_size;
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  hypura profile ~/models                         with the drive that these models lie on
  hypura profile big-model.gguf --seconds 2       more patiently
  hypura profile --json
";

/// Measure this machine: memory, cores, bandwidth, and the drive that models lie on
///
/// The drive is measured by reading a model past the page cache, in random order; nothing is written to it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Profile {
    /// A model, or a directory of models, of which the largest is read
    #[arg(value_name = "MODEL|DIR", default_value = ".")]
    pub path: PathBuf,

    /// Seconds for each of the measurements of the drive
    #[arg(long, default_value_t = 0.5)]
    pub seconds: f64,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Sweeps through memory: the best counts, as others may use memory, too.
const SWEEPS: u64 = 5;

/// Measures and shows.
///
/// # Errors
/// When the path does not exist, or a file cannot be read.
pub fn run(arguments: &Profile) -> Result<ExitCode, String> {
    if !(arguments.seconds > 0.0 && arguments.seconds <= 60.0) {
        return Err(format!("--seconds {}: it is more than 0 and at most 60", arguments.seconds));
    }
    let model = model_at(&arguments.path)?;
    let mut machine = hypura::hw::profile(&arguments.path);
    let bar = progress::bar(SWEEPS + if model.is_some() { drive::MEASUREMENTS } else { 0 });
    bar.set_message("reading memory");
    let threads = machine.cores.parallel();
    let sweep = |_| {
        let speed = measure_memory_bandwidth(threads);
        bar.inc(1);
        speed
    };
    machine.memory_bytes_per_second = (0..SWEEPS).filter_map(sweep).reduce(f64::max);
    let mut speed = None;
    if let Some((path, model)) = &model {
        bar.set_message(format!("reading {}", path.display()));
        let time = Duration::from_secs_f64(arguments.seconds);
        speed = drive::drive_speed(&model.paths(), time, || bar.inc(1))?;
        machine.drive_bytes_per_second = speed.as_ref().map(DriveSpeed::best);
    }
    bar.finish_and_clear();
    if speed.is_none() {
        machine.notes.push(format!(
            "the drive was not measured: there is no model of 16 MiB or more at {}; name one",
            arguments.path.display()
        ));
    }
    let path = model.as_ref().map(|(path, _)| path.as_path());
    match arguments.json {
        true => output::print_json(&to_json(&machine, path, speed.as_ref()))?,
        false => output::print(&text(&machine, path, speed.as_ref()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The model to read: the one that is named, or the largest in a directory that is one.
fn model_at(path: &Path) -> Result<Option<(PathBuf, ModelFile)>, String> {
    if !path.is_dir() {
        return Ok(Some((path.to_owned(), ModelFile::open_named(path)?)));
    }
    let readable = |path: PathBuf| Some((path.clone(), ModelFile::open(&path).ok()?));
    Ok(models_by_size(path).into_iter().find_map(readable))
}

fn text(machine: &Machine, model: Option<&Path>, speed: Option<&DriveSpeed>) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: String| text.push_str(&format!("{name:<14}{value}\n"));
    let unknown = || "unknown".to_owned();
    fact("processor", if machine.processor.is_empty() { unknown() } else { machine.processor.clone() });
    let quota = machine.cores.quota.map_or(String::new(), |quota| format!(", {quota:.1} by the cgroup's quota"));
    fact("cores", format!("{} usable{quota}", machine.cores.usable));
    fact(
        "memory",
        format!(
            "{} available of {} (by {})",
            bytes(machine.memory.available_bytes),
            bytes(machine.memory.limit_bytes),
            machine.memory.limited_by
        ),
    );
    fact("bandwidth", machine.memory_bytes_per_second.map_or_else(unknown, rate));
    let swap = machine.swap.map_or_else(unknown, |swap| match swap.total_bytes {
        0 => "none".to_owned(),
        total => format!("{} free of {}", bytes(swap.free_bytes), bytes(total)),
    });
    fact("swap", swap);
    fact("huge pages", machine.huge_pages.mode.name().to_owned());
    let drive = &machine.drive;
    let disks = drive.disks.iter().map(|disk| match disk.model.as_str() {
        "" => disk.name.clone(),
        model => format!("{} ({model})", disk.name),
    });
    let parts = [drive.kind.name().to_owned(), drive.file_system.clone()];
    let parts = parts.into_iter().chain(drive.layers.iter().cloned()).chain(disks).filter(|part| !part.is_empty());
    fact("drive", parts.collect::<Vec<_>>().join(", "));
    if let (Some(speed), Some(model)) = (speed, model) {
        fact("reads", format!("{} at best, of {}", rate(speed.best()), model.display()));
        text.push('\n');
        let mut table = Table::new(&["engine", "block", "depth", "direct", "speed"]);
        for (index, (tuning, speed)) in speed.measured.iter().enumerate() {
            let chosen = if index == 0 { " (libhypura's choice)" } else { "" };
            let direct = if tuning.direct { "yes" } else { "no" };
            let block = bytes(tuning.block_bytes as u64);
            let engine = format!("{}{chosen}", tuning.engine.name());
            table.row(vec![engine, block, tuning.depth.to_string(), direct.to_owned(), rate(*speed)]);
        }
        text.push_str(&table.text());
    }
    for note in &machine.notes {
        text.push_str(&format!("\nnote: {note}\n"));
    }
    text
}

fn to_json(machine: &Machine, model: Option<&Path>, speed: Option<&DriveSpeed>) -> Value {
    let mut json = machine.to_json();
    let measured = speed.iter().flat_map(|speed| &speed.measured).map(|(tuning, speed)| {
        json!({
            "engine": tuning.engine.name(),
            "block_bytes": tuning.block_bytes,
            "depth": tuning.depth,
            "direct": tuning.direct,
            "bytes_per_second": speed,
        })
    });
    json["reads"] = json!({"file": model, "measured": measured.collect::<Vec<_>>()});
    json
}
