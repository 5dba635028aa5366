//! `hypura pull`.

use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::hub::cache;
use crate::hub::client::Client;
use crate::hub::download::{Progress, download};
use crate::hub::listing;
use crate::hub::source::Source;
use crate::hub::variants::Variants;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  hypura pull hf:OWNER/REPO:Q4_K_M                one of its quantisations
  hypura run \"$(hypura pull hf:OWNER/REPO)\" -p 'Why is the sky blue?'
  HF_TOKEN=... hypura pull hf:OWNER/REPO          one that asks for a key
";

/// Download a model from the Hugging Face hub
///
/// It goes into the cache that other programs of the hub share (HF_HOME, HF_HUB_CACHE), with its projector where it has
/// one, and is compared with its checksum. A download that was broken off goes on where it ended. The path of the model
/// is printed. HF_ENDPOINT, HF_TOKEN and the usual variables of proxies are respected.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Pull {
    /// hf:OWNER/REPO[:QUANTISATION]; without one Q4_K_M, or the only one
    pub model: String,
}

/// Downloads.
///
/// # Errors
/// A sentence when the hub, the network or the place fails.
pub fn run(arguments: &Pull) -> Result<ExitCode, String> {
    let written = &arguments.model;
    let source = Source::parse(written).or_else(|| Source::in_repository(written));
    let Some(Source::Repository { repository, tag }) = source else {
        return Err(Source::misspelt(written));
    };
    let client = Client::from_environment();
    let variants = Variants::of(&listing::files(&client, &repository)?);
    let mut files = variants.choose(&repository, tag.as_deref())?.files.clone();
    files.extend(variants.projector().cloned());
    let bar = bar(files.iter().map(|file| file.size_bytes).sum());
    let show = |progress| {
        match progress {
            Progress::Received { completed: 0, .. } => {}
            Progress::Received { hash, completed, .. } => {
                let before: u64 = files.iter().take_while(|file| file.hash != hash).map(|file| file.size_bytes).sum();
                bar.set_message("");
                bar.set_position(before + completed);
            }
            Progress::Verifying => bar.set_message("comparing checksums"),
        }
        true
    };
    let paths = download(&client, &cache::hub()?, &repository, &files, &show)?;
    bar.finish_and_clear();
    output::print(&format!("{}\n", paths[0].display()))?;
    Ok(ExitCode::SUCCESS)
}

fn bar(bytes: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:24} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} {msg}");
    // A template that cannot be read would be a mistake of ours; the default looks plainer and works.
    ProgressBar::new(bytes).with_style(style.unwrap_or(ProgressStyle::default_bar()))
}
