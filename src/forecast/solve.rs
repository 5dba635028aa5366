//! The way from a problem to a placement.

use super::linear::{LinearSolver, Microlp};
use super::problem::{Item, Problem, Seat, TierBytes};
use super::refine::{Search, round};
use super::relax::{Streams, classes_of, relax};
use super::simulate::{Prediction, simulate};
use crate::error::{Error, ErrorCode, Result};

/// Where everything goes, and what that will do.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// By item.
    pub seats: Vec<Seat>,
    /// The same, in bytes.
    pub tiers: TierBytes,
    /// What the simulated pass says.
    pub prediction: Prediction,
    /// No placement takes less than this many seconds per token; `None` when the linear program was not solved.
    pub bound_seconds: Option<f64>,
}

/// How hard to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effort {
    /// Round the relaxed optimum.
    Rounded,
    /// And refine it.
    Refined,
}

/// Places everything so that the predicted time of a token is least.
///
/// # Errors
/// `InvalidArgument` for numbers that make no sense; `Budget` when what must be in RAM, and the ring where something
/// must be streamed, is more than there is: the message names what would do.
pub fn solve(problem: &Problem) -> Result<Solution> {
    solve_with(problem, &Microlp, Effort::Refined)
}

/// Tokens per second by bytes of RAM for weights, from the least that works to where more changes nothing: at most
/// `count` points, RAM growing. The placements behind it are not refined, so it may be a little below [`solve`].
///
/// # Errors
/// As for [`solve`].
pub fn speed_by_ram(problem: &Problem, count: usize) -> Result<Vec<(u64, f64)>> {
    problem.check()?;
    let most = host_bytes(problem);
    let least = least_ram_bytes(problem);
    let steps = (count as u64).saturating_sub(1);
    let point = |step: u64| if step == steps { most } else { least + (most - least) / steps * step };
    let mut points: Vec<u64> = (0..count as u64).map(point).collect();
    points.dedup();
    points
        .into_iter()
        .map(|ram_bytes| {
            let mut problem = problem.clone();
            problem.machine.ram_bytes = ram_bytes;
            let solution = solve_with(&problem, &Microlp, Effort::Rounded)?;
            Ok((ram_bytes, solution.prediction.tokens_per_second()))
        })
        .collect()
}

pub(super) fn solve_with(problem: &Problem, solver: &impl LinearSolver, effort: Effort) -> Result<Solution> {
    problem.check()?;
    let classes = classes_of(problem);
    let has_dense = problem.items.iter().any(|item| item.streamable && !item.is_routed() && !item.on_gpu);
    let has_experts = problem.items.iter().any(|item| item.streamable && item.is_routed() && !item.on_gpu);
    let cases = Streams::ALL.iter().filter(|case| (has_dense || !case.dense) && (has_experts || !case.experts));
    let mut bound_seconds: Option<f64> = None;
    let mut starts: Vec<Search<'_>> = Vec::new();
    for &case in cases {
        let relaxed = relax(problem, &classes, case, solver);
        if let Some(relaxed) = &relaxed {
            bound_seconds = Some(bound_seconds.map_or(relaxed.bound_seconds, |bound| bound.min(relaxed.bound_seconds)));
        }
        starts.extend(round(problem, &classes, case, relaxed.as_ref()));
    }
    starts.sort_by(|one, other| one.score.total_cmp(&other.score));
    if effort == Effort::Refined {
        // Where a better arrangement streams something else, steps from one start may not lead there.
        const ITEMS_OF_MANY_STARTS_MAX: usize = 200;
        starts.truncate(if problem.items.len() <= ITEMS_OF_MANY_STARTS_MAX { Streams::ALL.len() } else { 2 });
        starts.iter_mut().for_each(|start| start.improve(&classes));
    }
    let best = starts.into_iter().min_by(|one, other| one.score.total_cmp(&other.score));
    let best = best.ok_or_else(|| too_small(problem))?;
    let seats = best.seats;
    Ok(Solution { tiers: problem.tiers(&seats), prediction: simulate(problem, &seats), seats, bound_seconds })
}

/// Bytes of everything on the host.
fn host_bytes(problem: &Problem) -> u64 {
    problem.items.iter().filter(|item| !item.on_gpu).map(Item::bytes).sum()
}

/// The least RAM that works when no GPU takes anything.
fn least_ram_bytes(problem: &Problem) -> u64 {
    let host = || problem.items.iter().filter(|item| !item.on_gpu);
    let resident: u64 = host().filter(|item| !item.streamable).map(Item::bytes).sum();
    let streams = |routed: bool| host().any(|item| item.streamable && item.is_routed() == routed);
    let streaming = resident + problem.ring_bytes(streams(false), streams(true));
    streaming.min(host_bytes(problem))
}

fn too_small(problem: &Problem) -> Error {
    Error::new(
        ErrorCode::Budget,
        format!(
            "{} of RAM for weights is too little: {} must be there whatever is streamed; use a smaller context, free memory, \
             or put more of the model on a GPU",
            crate::plan::in_gigabytes(problem.machine.ram_bytes),
            crate::plan::in_gigabytes(least_ram_bytes(problem))
        ),
    )
}
