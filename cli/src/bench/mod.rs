//! `hypura bench`: stock llama.cpp, streamed, and the physical limit, measured in turn so that a drifting machine
//! drifts for all.
//!
//! Every run is a llama-server of its own, because it says when each token came; figures are of the time after the
//! first one.

mod caches;
mod chart;
mod kind;
mod memory_limit;
mod report;
mod runs;

use std::collections::BTreeMap;
use std::time::Duration;

use hypura::hw::memory;
use indicatif::ProgressBar;

use crate::drive;
use crate::model_file::ModelFile;
use crate::placement::{Placement, Request};
use crate::progress;
use caches::drop_caches;
pub use chart::chart;
use kind::Kind;
use memory_limit::MemoryLimit;
pub use report::Report;
pub use runs::{Subject, TOKENS_MAX};

/// How often, and under which memory limit.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs of each kind.
    pub rounds: u32,
    /// The memory limit in bytes; `None` takes half of the model, or what there is.
    pub limit_bytes: Option<u64>,
}

/// What a program needs beside the weights.
const PROGRAM_BYTES: u64 = 512 << 20;

/// Room that must be left before a model counts as fitting into memory.
const MARGIN_BYTES: u64 = 2 << 30;

/// Measures.
///
/// # Errors
/// A sentence when nothing can be measured, or the user interrupts.
pub fn bench(model: &ModelFile, subject: &Subject, effort: &Effort) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot wait for llama-server: {error}"))?;
    runtime.block_on(async {
        tokio::select! {
            report = measure(model, subject, effort) => report,
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        }
    })
}

async fn measure(model: &ModelFile, subject: &Subject, effort: &Effort) -> Result<Report, String> {
    let weight_bytes = model.gguf.model_bytes();
    let available = memory().available_bytes;
    let half = (weight_bytes / 2).max(PROGRAM_BYTES);
    let limit_bytes = effort.limit_bytes.unwrap_or(half.min(available / 10 * 9));
    let mut notes = Vec::new();
    let limit = match MemoryLimit::make(limit_bytes) {
        Ok(limit) => Some(limit),
        Err(problem) => {
            notes.push(format!("{problem}: stock llama.cpp may use all memory"));
            None
        }
    };
    let fits = weight_bytes.saturating_add(MARGIN_BYTES) < available;
    let kinds = [Some(Kind::Mmap), Some(Kind::Streamed), fits.then_some(Kind::Resident)];
    let kinds: Vec<Kind> = kinds.into_iter().flatten().collect();

    let bar = progress::bar(u64::from(effort.rounds) * kinds.len() as u64);
    let mut runs = BTreeMap::<Kind, Vec<runs::Run>>::new();
    let mut dropped = caches::Dropped::All;
    for round in 1..=effort.rounds {
        for &kind in &kinds {
            bar.set_message(format!("round {round}: {}", kind.title()));
            dropped = drop_caches(&model.paths());
            let limit = limit.as_ref().filter(|_| kind != Kind::Resident);
            let run = one(model, subject, kind, limit, &bar).await?;
            runs.entry(kind).or_default().push(run);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    let failures = runs.values().flatten().filter_map(|run| run.failure.as_deref());
    if runs.values().flatten().all(|run| run.failure.is_some()) {
        let first = failures.into_iter().next().unwrap_or("no run was made");
        return Err(format!("no run succeeded: {first}"));
    }
    if runs[&Kind::Streamed].iter().all(|run| run.streaming.is_none() && run.failure.is_none()) {
        notes.push("nothing was streamed, since the model fits; a smaller --ram or --stream changes that".to_owned());
    }
    let streaming = || runs[&Kind::Streamed].iter().filter_map(|run| run.streaming);
    if streaming().count() > 0 && streaming().all(|streaming| streaming.read_bytes_per_token < 1.0) {
        notes.push("all that is streamed has room under the limit and is read once; try a smaller --ram".to_owned());
    }
    let report = Report {
        title: model.title(),
        file: subject.model.clone(),
        weight_bytes,
        limit_bytes: limit.as_ref().map(|_| limit_bytes),
        dropped,
        planned_compute_seconds: planned_compute_seconds(model, fits, limit_bytes),
        runs,
        notes,
    };
    if !report.texts_are_equal() {
        return Err(
            "two runs wrote different texts, which must never be: please report it with this model's name".to_owned()
        );
    }
    Ok(report)
}

/// One run, with the drive as it is before and after it.
async fn one(
    model: &ModelFile,
    subject: &Subject,
    kind: Kind,
    limit: Option<&MemoryLimit>,
    bar: &ProgressBar,
) -> Result<runs::Run, String> {
    let before = drive_speed(model, kind)?;
    let mut run = runs::run(subject, kind, limit).await;
    let after = drive_speed(model, kind)?;
    run.drive_bytes_per_second = before.zip(after).map(|(before, after)| (before + after) / 2.0);
    let outcome = match (&run.failure, run.tokens_per_second) {
        (Some(failure), _) => failure.clone(),
        (None, speed) => format!("{} tokens per second", crate::format::figure(speed.unwrap_or(0.0))),
    };
    bar.println(format!("{}: {outcome}", kind.title()));
    Ok(run)
}

/// The drive's speed, where it matters.
fn drive_speed(model: &ModelFile, kind: Kind) -> Result<Option<f64>, String> {
    const TIME: Duration = Duration::from_millis(200);
    if kind != Kind::Streamed {
        return Ok(None);
    }
    let speed = drive::drive_speed(&model.paths(), TIME, || {})?;
    Ok(speed.map(|speed| speed.best()))
}

/// What the planner says of computing, when it cannot be measured.
fn planned_compute_seconds(model: &ModelFile, fits: bool, limit_bytes: u64) -> Option<f64> {
    if fits {
        return None;
    }
    let request = Request { ram_bytes: Some(limit_bytes), gpu_bytes: 0, context_tokens: 0, projector_bytes: 0 };
    Some(Placement::find(model, &request).ok()?.placed.prediction.compute_seconds)
}
