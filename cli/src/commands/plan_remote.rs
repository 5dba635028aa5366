//! `hypura plan` of a model that is not on this machine: its header is read over the network, and nothing is kept.

use std::path::Path;

use serde_json::{Value, json};

use super::plan::{self, CURVE_POINTS, Plan};
use crate::format::bytes;
use crate::hub::cache;
use crate::hub::client::Client;
use crate::hub::header::RemoteModel;
use crate::hub::listing;
use crate::hub::source::Source;
use crate::hub::variants::{Variant, Variants};
use crate::placement::{Placement, Request};
use crate::projector::{Choice, Projector};
use crate::shortlist::{self, Candidate, Curve, largest_reaching};
use crate::terminal::Terminal;

/// Headers that are read at most to find what reaches a speed: each is megabytes.
const HEADERS_MAX: usize = 4;

/// What is said of a model that is elsewhere.
struct Report {
    model: RemoteModel,
    placement: Placement,
    speeds: Vec<(u64, f64)>,
    /// The other quantisations of its repository.
    candidates: Vec<Candidate>,
    /// The largest that reaches the wanted speed.
    reaches: Option<String>,
}

/// Plans for a model that is elsewhere, and returns what to print.
///
/// # Errors
/// When it cannot be read, or the memory is too little.
pub fn report(arguments: &Plan, source: &Source) -> Result<String, String> {
    let client = Client::from_environment();
    let place = cache::hub()?;
    let report = match source {
        Source::Address(url) => {
            let model = RemoteModel::at(&client, url)?;
            Report::of_one(model, &place, &plan::request(arguments, 0))?
        }
        Source::Repository { repository, tag } => {
            let variants = Variants::of(&listing::files(&client, repository)?);
            let chosen = variants.choose(repository, tag.as_deref())?;
            let request = plan::request(arguments, projector_bytes(&arguments.projector, &variants)?);
            let model = RemoteModel::in_repository(&client, repository, &chosen.files)?;
            let mut report = Report::of_one(model, &place, &request)?;
            report.compare(&variants, chosen);
            if let Some(speed) = arguments.want {
                report.find(&client, repository, &variants, &request, speed)?;
            }
            report
        }
    };
    Ok(match arguments.json {
        true => format!("{}\n", report.to_json(arguments, &client)),
        false => report.text(arguments, &client),
    })
}

/// What the projector takes that is named, or that the repository has: a file little larger than its weights.
fn projector_bytes(choice: &Choice, variants: &Variants) -> Result<u64, String> {
    match &choice.mmproj {
        Some(path) => Ok(Projector::open(path)?.size_bytes()),
        None if choice.no_mmproj => Ok(0),
        None => Ok(variants.projector().map_or(0, |file| file.size_bytes)),
    }
}

impl Report {
    fn of_one(model: RemoteModel, place: &Path, request: &Request) -> Result<Self, String> {
        let placement = Placement::find_in(place, &model.file, request)?;
        let speeds = placement.speed_by_ram(&model.file, CURVE_POINTS)?;
        Ok(Self { model, placement, speeds, candidates: Vec::new(), reaches: None })
    }

    fn compare(&mut self, variants: &Variants, chosen: &Variant) {
        let curve = Curve::new(&self.placement, &self.speeds, chosen.size_bytes());
        self.candidates = variants.models.iter().map(|variant| curve.estimate(variant)).collect();
        self.set_planned(&chosen.tag, &self.placement.placed.prediction.tokens_per_second().clone());
    }

    fn set_planned(&mut self, tag: &str, speed: &f64) {
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.tag == tag) {
            candidate.speed = Some(*speed);
            candidate.is_planned = true;
        }
    }

    /// Finds the largest that reaches a speed: the estimate says which, its own header whether it is right.
    fn find(
        &mut self,
        client: &Client,
        repository: &str,
        variants: &Variants,
        request: &Request,
        speed: f64,
    ) -> Result<(), String> {
        for _ in 0..HEADERS_MAX {
            let Some(best) = largest_reaching(&self.candidates, speed).cloned() else { return Ok(()) };
            if !best.is_planned {
                let variant = variants.choose(repository, Some(&best.tag))?;
                let model = RemoteModel::in_repository(client, repository, &variant.files)?;
                let planned = self.placement.with(&model.file, request)?;
                self.set_planned(&best.tag, &planned.placed.prediction.tokens_per_second());
                if planned.placed.prediction.tokens_per_second() >= speed {
                    self.speeds = planned.speed_by_ram(&model.file, CURVE_POINTS)?;
                    (self.model, self.placement) = (model, planned);
                }
            }
            if largest_reaching(&self.candidates, speed).is_some_and(|now| now.tag == best.tag && now.is_planned) {
                self.reaches = Some(best.tag);
                return Ok(());
            }
        }
        Ok(())
    }

    fn text(&self, arguments: &Plan, client: &Client) -> String {
        let mut text =
            plan::text(&self.model.file, &self.placement, &self.speeds, arguments.ctx, Terminal::of_output());
        if !self.candidates.is_empty() {
            text.push_str(&format!("\n{}", shortlist::table(&self.candidates)));
            text.push_str("~ estimated from the size; name a quantisation for its own plan\n");
        }
        if let Some(speed) = arguments.want {
            text.push_str(&match &self.reaches {
                Some(tag) => format!("\nthe largest that reaches {speed} tokens per second here: {tag}\n"),
                None => format!("\nnone reaches {speed} tokens per second here\n"),
            });
        }
        text.push_str(&format!("\n{} were read to know this; nothing is kept\n", bytes(client.received_bytes())));
        text
    }

    fn to_json(&self, arguments: &Plan, client: &Client) -> Value {
        let mut json = plan::to_json(&self.model.file, &self.placement, &self.speeds, arguments.ctx);
        json["file"] = json!(arguments.model);
        json["quantizations"] = shortlist::to_json(&self.candidates);
        json["reaches"] = json!(self.reaches);
        json["received_bytes"] = json!(client.received_bytes());
        json
    }
}
