//! A demand for rows: they are copied piece by piece, in the order of the file, as the pieces become ready.

use std::ops::Range;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::error::{Error, ErrorCode, Result};
use crate::io::Request;

use super::pieces::{For, Holds, Pieces};
use super::{Rows, Table};
use crate::stream::tensors::BlockExtent;
use crate::stream::verify::Verifier;

/// Parts that a demand waits for at a time: waking up for each would take longer than a fast drive's reads.
const WINDOW_PIECES: usize = 64;

/// What a demand wants of a piece: a part of one row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    piece: u64,
    /// Where the row begins in the file.
    row_start: u64,
    /// Which of the demanded rows it is.
    row: usize,
}

/// How far a demand is. The parts before those that are held have been copied.
struct Demand<'a> {
    table: &'a Table,
    /// In the order of the file.
    parts: Vec<Part>,
    /// Of the parts that are held or were: the place of the piece.
    places: Vec<usize>,
    copied_count: usize,
    waited: Duration,
}

impl Demand<'_> {
    /// The parts whose pieces are held.
    fn held(&self) -> Range<usize> {
        self.copied_count..self.places.len()
    }

    fn leave(&self, pieces: &mut Pieces, parts: Range<usize>) {
        self.places[parts].iter().for_each(|&place| pieces.leave(place));
    }
}

impl Rows {
    /// Copies rows of a table to `destination`, one after the other as they are demanded, and compares them with the file where
    /// somebody wants that.
    pub(in crate::stream) fn read(
        &self,
        verifier: Option<&Verifier>,
        table: &Table,
        ids: &[i32],
        destination: &mut [u8],
    ) -> Result<()> {
        if ids.len().checked_mul(table.row_bytes) != Some(destination.len()) {
            let message = format!("{} rows do not have {} bytes", ids.len(), destination.len());
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        }
        let mut parts = Vec::with_capacity(ids.len());
        for (row, &id) in ids.iter().enumerate() {
            let row_start = table.row(id)?;
            parts.extend(self.pieces_of(row_start, table.row_bytes).map(|piece| Part { piece, row_start, row }));
        }
        parts.sort_unstable();
        let core = &self.shared.core;
        core.counters.rows.add(ids.len() as u64);
        let places = Vec::with_capacity(parts.len());
        let mut demand = Demand { table, parts, places, copied_count: 0, waited: Duration::ZERO };
        let outcome = self.meet(&mut demand, destination);
        core.counters.stall_time.add_time(demand.waited);
        core.counters.row_stall_time.add_time(demand.waited);
        let check = |()| match verifier {
            Some(verifier) => verify(verifier, table, ids, destination),
            None => Ok(()),
        };
        outcome.and_then(check).inspect_err(|error| core.fail(core.state.lock(), error.clone()))
    }

    /// Reads what is missing as far as there is room, copies what is ready, and so on until all is copied.
    fn meet(&self, demand: &mut Demand<'_>, destination: &mut [u8]) -> Result<()> {
        let mut requests = Vec::new();
        while demand.copied_count < demand.parts.len() {
            let mut pieces = self.shared.pieces.lock();
            self.hold_more(&mut pieces, demand, &mut requests);
            self.submit(pieces, &mut requests);
            let mut pieces = self.shared.pieces.lock();
            let ready = match self.await_some(&mut pieces, demand) {
                Ok(ready) => ready,
                Err(error) => {
                    demand.leave(&mut pieces, demand.held());
                    return Err(error);
                }
            };
            let memory: Vec<*mut u8> =
                demand.places[ready.clone()].iter().map(|&place| pieces.address(place)).collect();
            drop(pieces);
            for (part, memory) in demand.parts[ready.clone()].iter().zip(memory) {
                // SAFETY: the piece is Ready and held by this demand, so its bytes are written and stay as they are; the memory lives as
                // long as `self`, and a place has room for a piece.
                let piece = unsafe { std::slice::from_raw_parts(memory.cast_const(), self.piece_bytes) };
                let row = &mut destination[part.row * demand.table.row_bytes..][..demand.table.row_bytes];
                copy_overlap(piece, part.piece * self.piece_bytes as u64, row, part.row_start);
            }
            let mut pieces = self.shared.pieces.lock();
            demand.leave(&mut pieces, ready.clone());
            demand.copied_count = ready.end;
            let wakes = std::mem::take(&mut pieces.wants_room);
            drop(pieces);
            if wakes {
                self.shared.changed.notify_all();
            }
            self.read_waiting(&mut self.waiting.lock());
        }
        Ok(())
    }

    /// Holds the pieces of further parts, in order, and adds reads for those that are in no place, as long as places can be had.
    fn hold_more(&self, pieces: &mut Pieces, demand: &mut Demand<'_>, requests: &mut Vec<Request>) {
        while let Some(part) = demand.parts.get(demand.places.len()) {
            let Some(place) = self.request(pieces, (demand.table.file, part.piece), For::Demand, requests) else {
                return;
            };
            pieces.hold(place);
            demand.places.push(place);
        }
    }

    /// Waits until the next held parts are ready, or, if none is held, until there may be room. Returns which are ready.
    fn await_some(&self, pieces: &mut MutexGuard<'_, Pieces>, demand: &mut Demand<'_>) -> Result<Range<usize>> {
        loop {
            if let Some(error) = &pieces.broken {
                return Err(error.clone());
            }
            let held = demand.held();
            let is_ready = |&index: &usize| pieces.holds(demand.places[index]) == Holds::Ready;
            let window = held.start..held.end.min(held.start + WINDOW_PIECES);
            // The last one that is missing: most of the others will have come by then.
            match window.clone().rev().find(|index| !is_ready(index)) {
                None if window.is_empty() => pieces.wants_room = true,
                None => return Ok(held.start..held.start + held.clone().take_while(is_ready).count()),
                Some(index) => match pieces.error(demand.places[index]) {
                    Some(error) => return Err(error),
                    None => pieces.await_place(demand.places[index]),
                },
            }
            let since = Instant::now();
            self.shared.changed.wait(pieces);
            demand.waited += since.elapsed();
            if demand.held().is_empty() {
                return Ok(held);
            }
        }
    }
}

/// Copies the part of a row that a piece has. Both are told by where they begin in the file.
fn copy_overlap(piece: &[u8], piece_start: u64, row: &mut [u8], row_start: u64) {
    let from = piece_start.max(row_start);
    let to = (piece_start + piece.len() as u64).min(row_start + row.len() as u64);
    if from < to {
        let (length, in_piece, in_row) =
            ((to - from) as usize, (from - piece_start) as usize, (from - row_start) as usize);
        row[in_row..][..length].copy_from_slice(&piece[in_piece..][..length]);
    }
}

fn verify(verifier: &Verifier, table: &Table, ids: &[i32], rows: &[u8]) -> Result<()> {
    ids.iter().zip(rows.chunks_exact(table.row_bytes)).try_for_each(|(&id, row)| {
        let extent = BlockExtent { file: table.file, offset: table.row(id)?, size_bytes: row.len() };
        verifier.check(extent, row)
    })
}
