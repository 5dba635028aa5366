//! What is demanded: a tensor, which of its experts are used, by how many rows, and which of them are to be delivered.

use typed_index_collections::{TiSlice, TiVec};

use crate::error::{Error, ErrorCode, Result};
use crate::index::{ExpertId, StreamedId, WaiterId};

use super::session::Session;
use super::tensors::StreamedTensor;

/// A demand as its pass sees it.
pub(super) struct Demand<'a> {
    /// The tensor, as the session numbers those that are streamed.
    pub(super) tensor: StreamedId,
    pub(super) streamed: &'a StreamedTensor,
    pub(super) experts: &'a Experts,
    pub(super) routing: &'a [i32],
    pub(super) tokens: usize,
    /// Who demands it.
    pub(super) waiter: WaiterId,
}

/// The experts of a demand. Kept from one demand to the next, so that none allocates.
#[derive(Default)]
pub(super) struct Experts {
    used: Vec<ExpertId>,
    wanted: Vec<ExpertId>,
    row_counts: TiVec<ExpertId, u32>,
}

impl Experts {
    /// Those of a demand as its host made it: see [`super::Fetch::begin_some`].
    ///
    /// # Errors
    /// `InvalidArgument` for an expert that does not exist, for one that is wanted and not used, and for routing that is not the same
    /// number of experts for each token.
    pub(super) fn collect(
        &mut self,
        streamed: &StreamedTensor,
        routing: &[i32],
        tokens: usize,
        wanted: Option<&[i32]>,
    ) -> Result<()> {
        self.used.clear();
        self.row_counts.clear();
        self.row_counts.resize(streamed.block_count, 0);
        if !streamed.is_expert {
            if !routing.is_empty() {
                return Err(invalid("experts are demanded of a tensor that has none".to_owned()));
            }
            self.used.push(ExpertId(0));
            self.row_counts[ExpertId(0)] = tokens as u32;
        } else if !routing.is_empty() && (tokens == 0 || routing.len() % tokens != 0) {
            let message = format!("{} experts cannot be the same number for each of {tokens} tokens", routing.len());
            return Err(invalid(message));
        }
        for &id in routing {
            let expert = ExpertId::of_host(id)
                .filter(|&expert| streamed.has(expert))
                .ok_or_else(|| invalid(format!("there is no expert {id}: the tensor has {}", streamed.block_count)))?;
            if self.row_counts[expert] == 0 {
                self.used.push(expert);
            }
            self.row_counts[expert] += 1;
        }
        self.collect_wanted(wanted)
    }

    fn collect_wanted(&mut self, wanted: Option<&[i32]>) -> Result<()> {
        let Self { used, wanted: collected, row_counts } = self;
        collected.clear();
        let Some(wanted) = wanted else {
            collected.extend_from_slice(used);
            return Ok(());
        };
        for &id in wanted {
            let is_used = |&expert: &ExpertId| row_counts.get(expert).is_some_and(|&count| count > 0);
            let expert = ExpertId::of_host(id).filter(is_used);
            let expert = expert.ok_or_else(|| invalid(format!("expert {id} is wanted, but not used")))?;
            if !collected.contains(&expert) {
                collected.push(expert);
            }
        }
        Ok(())
    }

    /// The distinct ones that are used, in order of first use; 0 of a dense tensor.
    pub(super) fn used(&self) -> &[ExpertId] {
        &self.used
    }

    /// Those of them that are to be delivered.
    pub(super) fn wanted(&self) -> &[ExpertId] {
        &self.wanted
    }

    /// By expert: how many rows are sent to it.
    pub(super) fn row_counts(&self) -> &TiSlice<ExpertId, u32> {
        &self.row_counts
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidArgument, message)
}

/// Why a demand for a tensor is refused.
pub(super) fn not_streamed(tensor: usize, session: &Session) -> Error {
    let reason = match (session.streams(tensor), session.is_table(tensor)) {
        (false, _) => "is not one of the streamed tensors",
        (true, true) => {
            "is a table, which is read by the row: ask for rows of it (hypura_fetch_rows), not for all of it"
        }
        (true, false) => "was not bound when the host said that all were",
    };
    invalid(format!("tensor {tensor} {reason}"))
}

/// Why rows of a tensor are refused.
pub(super) fn no_table(tensor: usize, session: &Session) -> Error {
    let reason = match (session.is_table(tensor), session.streams(tensor)) {
        (true, _) => "was not bound when the host said that all were",
        (false, true) => "is no table: ask for all of it, or for its experts (hypura_fetch_begin)",
        (false, false) => "is not one of the streamed tensors",
    };
    invalid(format!("tensor {tensor} {reason}"))
}
