//! Reading traces.
//!
//! A trace is CSV, one line per token, layer and chosen expert, with the columns `turn, phase (0 prefill, 1 decode),
//! step, layer, slot, expert` and more that are not looked at. Lines that start with `#` are a header, of which `model`
//! and
//! `n_expert` are read. A decode step is one token. The steps of a prefill are either tokens, and then all of a turn's
//! are one batch, or batches, and then a layer's slots repeat within a step.

use std::path::Path;

use crate::cache::policy::{Shape, Use};
use crate::error::{Error, ErrorCode, Result};
use crate::index::{ExpertId, PolicyLayer};

/// More layers or experts than this are a damaged file, not a model.
const NUMBER_MAX: u32 = 1 << 16;
const UNITS_MAX: usize = 1 << 22;

/// Recorded routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The name of the model.
    pub model: String,
    /// The layers that have experts, numbered from 0 without gaps, and their experts.
    pub shape: Shape,
    /// In the order in which they ran.
    pub passes: Vec<Pass>,
}

/// One run through the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The generation that it belongs to.
    pub turn: u32,
    /// Whether it generated a token; otherwise it read a part of a prompt.
    pub is_decode: bool,
    /// What each layer used, in order.
    pub layers: Vec<LayerUse>,
}

/// What one layer used in a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerUse {
    /// The layer, among those of [`Trace::shape`].
    pub layer: PolicyLayer,
    /// Tokens in the batch.
    pub token_count: u32,
    /// The distinct experts, in order of first mention.
    pub experts: Vec<ExpertUse>,
}

/// The use of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertUse {
    /// Which.
    pub expert: ExpertId,
    /// By how many tokens of the batch.
    pub routed_count: u32,
}

impl LayerUse {
    /// How an expert of it was used.
    pub fn usage(&self, expert: &ExpertUse) -> Use {
        Use { token_count: self.token_count, routed_count: expert.routed_count }
    }
}

/// The columns that count.
#[derive(Clone, Copy)]
struct Line {
    turn: u32,
    is_decode: bool,
    step: u32,
    layer: u32,
    slot: u32,
    expert: u32,
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// `Open` when it cannot be read, `Format` with the line that is not of a trace.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::new(ErrorCode::Open, format!("cannot read {}: {error}", path.display())))?;
        Self::parse(&text)
            .map_err(|problem| Error::new(ErrorCode::Format, format!("{} is not a trace: {problem}", path.display())))
    }

    /// Reads a trace's text. The error says which line is wrong, and how.
    pub(super) fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut model = String::new();
        let mut expert_count = 0;
        let mut lines = Vec::new();
        for (number, text) in text.lines().enumerate().map(|(index, text)| (index + 1, text.trim())) {
            if let Some(header) = text.strip_prefix('#') {
                if let Some(name) = header.trim().strip_prefix("model: ") {
                    model = name.to_owned();
                }
                for word in header.split_whitespace() {
                    match word.split_once('=') {
                        Some(("model", name)) => model = name.to_owned(),
                        Some(("n_expert", count)) => expert_count = number_in(count, number)?,
                        _ => {}
                    }
                }
            } else if !text.is_empty() && !text.starts_with("turn,") {
                lines.push(Line::parse(text, number)?);
            }
        }
        let expert_count = lines.iter().map(|line| line.expert + 1).max().unwrap_or(0).max(expert_count) as usize;
        let mut layers: Vec<u32> = lines.iter().map(|line| line.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        let shape = Shape { layer_count: layers.len(), expert_count };
        if lines.is_empty() || shape.unit_count() > UNITS_MAX {
            return Err(format!("it names {} layers and {expert_count} experts", layers.len()));
        }
        Ok(Self { model, shape, passes: passes(&lines, &layers) })
    }

    /// The passes that generated tokens, alone.
    pub fn without_prompts(&self) -> Self {
        let passes = self.passes.iter().filter(|pass| pass.is_decode).cloned().collect();
        Self { model: self.model.clone(), shape: self.shape, passes }
    }
}

impl Line {
    fn parse(text: &str, number: usize) -> std::result::Result<Self, String> {
        let mut columns = text.split(',');
        let mut next = || match columns.next() {
            Some(column) => number_in(column, number),
            None => Err(format!("line {number} has too few columns")),
        };
        let (turn, phase, step) = (next()?, next()?, next()?);
        if phase > 1 {
            return Err(format!("line {number} is of phase {phase}, which is neither prefill (0) nor decode (1)"));
        }
        let line = Self { turn, is_decode: phase == 1, step, layer: next()?, slot: next()?, expert: next()? };
        if line.layer.max(line.expert) >= NUMBER_MAX {
            return Err(format!("line {number} is of layer {} and expert {}", line.layer, line.expert));
        }
        Ok(line)
    }
}

fn number_in(column: &str, number: usize) -> std::result::Result<u32, String> {
    column.trim().parse().map_err(|_| format!("line {number} has '{column}' where a number belongs"))
}

/// Lines grouped into passes, their layers in order.
fn passes(lines: &[Line], layers: &[u32]) -> Vec<Pass> {
    let steps_are_batches = lines
        .windows(2)
        .any(|pair| !pair[0].is_decode && same_layer_step(&pair[0], &pair[1]) && pair[0].slot >= pair[1].slot);
    let same_pass = |a: &Line, b: &Line| {
        let same_batch = !a.is_decode && !steps_are_batches;
        (a.turn, a.is_decode) == (b.turn, b.is_decode) && (a.step == b.step || same_batch)
    };
    lines
        .chunk_by(same_pass)
        .map(|lines| {
            let mut lines = lines.to_vec();
            lines.sort_by_key(|line| line.layer); // stable: tokens stay in order
            let layers = lines
                .chunk_by(|a, b| a.layer == b.layer)
                .map(|lines| {
                    let layer = layers.binary_search(&lines[0].layer).expect("collected from these lines");
                    layer_use(PolicyLayer(layer), lines)
                })
                .collect();
            Pass { turn: lines[0].turn, is_decode: lines[0].is_decode, layers }
        })
        .collect()
}

fn same_layer_step(a: &Line, b: &Line) -> bool {
    (a.turn, a.is_decode, a.step, a.layer) == (b.turn, b.is_decode, b.step, b.layer)
}

/// The use of a layer, from its lines.
fn layer_use(layer: PolicyLayer, lines: &[Line]) -> LayerUse {
    let mut experts: Vec<ExpertUse> = Vec::new();
    let mut index_of = std::collections::HashMap::new();
    for line in lines {
        let index = *index_of.entry(line.expert).or_insert(experts.len());
        match experts.get_mut(index) {
            Some(used) => used.routed_count += 1,
            None => experts.push(ExpertUse { expert: ExpertId(line.expert as usize), routed_count: 1 }),
        }
    }
    let same_token = |a: &Line, b: &Line| a.step == b.step && a.slot < b.slot;
    LayerUse { layer, token_count: lines.chunk_by(same_token).count() as u32, experts }
}
