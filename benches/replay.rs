//! Hit rates of every cache policy beside Belady's, on recorded traces, and how well the predictors foresee them.
//!
//! `cargo bench --bench replay -- TRACE...`; HYPURA_TRACE records traces.

use std::path::Path;
use std::process::ExitCode;

use hypura::error::Result;
use hypura::replay::{ProfileRecall, SHARES, Trace, WARM_TOKENS, compare, profile_recall, warm_start};

fn main() -> ExitCode {
    // cargo adds --bench.
    let paths: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if paths.is_empty() {
        eprintln!("which traces? cargo bench --bench replay -- TRACE...");
        return ExitCode::FAILURE;
    }
    for path in &paths {
        if let Err(error) = report(Path::new(path)) {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn report(path: &Path) -> Result<()> {
    let trace = Trace::open(path)?;
    let (layers, experts) = (trace.shape.layer_count, trace.shape.expert_count);
    let decoded = trace.passes.iter().filter(|pass| pass.is_decode).count();
    println!("{}: {}, {layers} layers of {experts} experts, {decoded} tokens", path.display(), trace.model);
    print_table("hits in %, after the prompts", &trace);
    print_table("hits in %, generated tokens alone, from cold", &trace.without_prompts());
    print_recall(&trace);
    print_warm_start(&trace);
    Ok(())
}

fn print_table(title: &str, trace: &Trace) {
    print!("\n  {title:<46}");
    SHARES.iter().for_each(|share| print!("{share:>7}%"));
    println!();
    for row in compare(trace) {
        print!("  {:<46}", row.name);
        row.hit_percents.iter().for_each(|percent| print!("{percent:>8.1}"));
        println!();
    }
    println!();
}

/// Of the experts that a token uses of a layer, those that were among as many guesses, and among twice as many.
fn print_recall(trace: &Trace) {
    let ProfileRecall { next_layer, next_token, popularity, repetition } = profile_recall(trace);
    println!("  {:<46}{:>8}{:>8}", "foreseen in %, by as many guesses and by twice", "1x", "2x");
    for (name, recall) in [
        ("by the layer before", next_layer),
        ("by the token before", next_token),
        ("by popularity alone", popularity),
        ("what the token before used", repetition),
    ] {
        let [as_many, twice] = recall.percents();
        println!("  {name:<46}{as_many:>8.1}{twice:>8.1}");
    }
    println!();
}

/// Hits of the first tokens of each text, begun cold and begun with the habits of the texts before it.
fn print_warm_start(trace: &Trace) {
    let percents = SHARES.map(|share| {
        let started = warm_start(trace, (trace.shape.unit_count() * share / 100).max(1))?;
        Some([started.cold, started.warm].map(|outcome| outcome.hit_percent()))
    });
    if percents[0].is_none() {
        return; // a single text
    }
    print!("  {:<46}", format!("hits in %, first {WARM_TOKENS} tokens of each text"));
    SHARES.iter().for_each(|share| print!("{share:>7}%"));
    for (kind, name) in ["from cold", "with the habits of the texts before"].iter().enumerate() {
        print!("\n  {name:<46}");
        percents.iter().flatten().for_each(|percents| print!("{:>8.1}", percents[kind]));
    }
    println!("\n");
}
