//! `hypura replay`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use hypura::replay::{Row, SHARES, Trace, compare};
use serde_json::{Value, json};

use crate::format::Table;
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  HYPURA_TRACE=trace.csv hypura run moe.gguf --stream -p 'Tell a story.'    record a trace
  hypura replay trace.csv                                                   and replay it
  hypura replay a.csv b.csv --json
";

/// Compare cache policies with the best possible one, on recorded use of experts
///
/// A trace is what HYPURA_TRACE records: which experts every token used. Each policy gets room for a share of all
/// experts; Belady's, which knows the future, is what no policy can beat. Shown are hits in percent.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Replay {
    /// Files that HYPURA_TRACE recorded
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What a trace says.
struct Report {
    path: PathBuf,
    trace: Trace,
    after_prompts: Vec<Row>,
    decode_only: Vec<Row>,
}

/// Replays every trace.
///
/// # Errors
/// When a file is no trace.
pub fn run(arguments: &Replay) -> Result<ExitCode, String> {
    let hint = "HYPURA_TRACE=FILE records one while a mixture of experts is streamed";
    let open = |path: &PathBuf| Trace::open(path).map_err(|error| format!("{error}; {hint}"));
    let traces = arguments.traces.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let bar = progress::bar(2 * traces.len() as u64);
    let mut reports = Vec::new();
    for (path, trace) in arguments.traces.iter().zip(traces) {
        bar.set_message(path.display().to_string());
        let after_prompts = compare(&trace);
        bar.inc(1);
        let decode_only = compare(&trace.without_prompts());
        bar.inc(1);
        reports.push(Report { path: path.clone(), trace, after_prompts, decode_only });
    }
    bar.finish_and_clear();
    if arguments.json {
        output::print_json(&Value::Array(reports.iter().map(Report::to_json).collect()))?;
    } else {
        let texts: Vec<String> = reports.iter().map(Report::text).collect();
        output::print(&texts.join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn token_count(&self) -> usize {
        self.trace.passes.iter().filter(|pass| pass.is_decode).count()
    }

    fn text(&self) -> String {
        let shape = self.trace.shape;
        let name = if self.trace.model.is_empty() { String::new() } else { format!("{}, ", self.trace.model) };
        format!(
            "{}: {name}{} layers of {} experts, {} tokens generated\n\n{}\n{}",
            self.path.display(),
            shape.layer_count,
            shape.expert_count,
            self.token_count(),
            table("hits in %, after the prompts", &self.after_prompts),
            table("hits in %, generated tokens alone, from cold", &self.decode_only)
        )
    }

    fn to_json(&self) -> Value {
        json!({
            "trace": self.path,
            "model": self.trace.model,
            "layers": self.trace.shape.layer_count,
            "experts": self.trace.shape.expert_count,
            "generated_tokens": self.token_count(),
            "cached_percent": SHARES,
            "after_prompts": rows_to_json(&self.after_prompts),
            "generated_tokens_alone": rows_to_json(&self.decode_only),
        })
    }
}

fn rows_to_json(rows: &[Row]) -> Value {
    let row = |row: &Row| json!({"policy": row.name, "hit_percent": row.hit_percents});
    Value::Array(rows.iter().map(row).collect())
}

fn table(title: &str, rows: &[Row]) -> String {
    let shares = SHARES.map(|share| format!("{share}%"));
    let header: Vec<&str> = std::iter::once(title).chain(shares.iter().map(String::as_str)).collect();
    let mut table = Table::new(&header);
    for row in rows {
        let figures = row.hit_percents.iter().map(|percent| format!("{percent:.1}"));
        table.row(std::iter::once(row.name.to_owned()).chain(figures).collect());
    }
    table.text()
}
