//! Tables that are looked up: of which a token uses some rows, and the rest stays on the drive.
//!
//! Which rows a pass will want is known before it computes anything, so the host announces them ([`Rows::announce`]), and all that is not in
//! memory is read at once, with as much in flight as the drive takes. A demand ([`Rows::read`]) finds its rows there or on their way.
//! The engine is one of its own: what suits reads of MiB does not suit those of a page.

mod demand;
mod pieces;
mod table;

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::index::ReadToken;
use crate::io::{self, Destination, DirectFile, Engine, Priority, Request, Sink, Tuning, Widened};

use super::core::Core;
use pieces::{For, Piece, Pieces};
pub(super) use table::Table;

/// Reads in flight. Drives that read small pieces at more than one at a time want dozens.
const DEPTH: usize = 128;

/// The least that is read. A drive's own page is no smaller.
const PIECE_BYTES_MIN: usize = 4096;

/// How much that nobody wants may lie between two pieces that are read as one. A read of its own costs a drive more.
const GAP_PIECES: u64 = 3;

/// Announced rows are read in the order of the file, but only so many of them at a time: the first ones are wanted first.
const SORTED_ROWS: usize = 512;

/// Reads rows.
pub(super) struct Rows {
    // Dropped first: afterwards nothing writes to the memory of the pieces any more.
    engine: Box<dyn Engine>,
    shared: Arc<Shared>,
    files: Arc<[DirectFile]>,
    piece_bytes: usize,
    memory_bytes: u64,
    /// Announced pieces that had no room yet, with the number of the announcement.
    waiting: Mutex<VecDeque<(Piece, u64)>>,
}

/// What read threads share with those that demand.
struct Shared {
    core: Arc<Core>,
    pieces: Mutex<Pieces>,
    /// Signalled when somebody is to be woken.
    changed: Condvar,
}

impl Sink for Shared {
    fn finished(&self, token: ReadToken, outcome: Result<()>) {
        let mut pieces = self.pieces.lock();
        let wakes = pieces.finished(token.0, outcome);
        let is_idle = pieces.in_flight == 0;
        drop(pieces);
        if is_idle {
            self.core.reads_end();
        }
        if wakes {
            self.changed.notify_all();
        }
    }

    fn broken(&self, error: Error) {
        self.pieces.lock().broken = Some(error);
        self.changed.notify_all();
    }
}

impl Rows {
    /// Starts reading from these files within `memory_bytes`.
    pub(super) fn start(
        files: &Arc<[DirectFile]>,
        tuning: &Tuning,
        memory_bytes: u64,
        core: &Arc<Core>,
    ) -> Result<Self> {
        let units = files.iter().map(|file| file.alignment()).map(|unit| unit.offset_bytes.max(unit.memory_bytes));
        let piece_bytes = units.fold(PIECE_BYTES_MIN, usize::max);
        let count = (memory_bytes as usize / piece_bytes).max(1);
        let shared = Arc::new(Shared {
            core: Arc::clone(core),
            pieces: Mutex::new(Pieces::new(count, piece_bytes)?),
            changed: Condvar::new(),
        });
        let tuning = Tuning { depth: DEPTH.min(count), block_bytes: piece_bytes.max(tuning.block_bytes), ..*tuning };
        let engine = io::start(&tuning, Arc::clone(files), count, Arc::clone(&shared) as Arc<dyn Sink>)?;
        let (files, waiting) = (Arc::clone(files), Mutex::new(VecDeque::new()));
        Ok(Self { engine, shared, files, piece_bytes, memory_bytes, waiting })
    }

    /// Bytes of all memory for rows.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Bytes of the pieces that are kept.
    pub(super) fn held_bytes(&self) -> u64 {
        (self.shared.pieces.lock().count() * self.piece_bytes) as u64
    }

    /// Reads rows that a pass to come will look up, in this order; at once, as far as there is room.
    pub(super) fn announce(&self, table: &Table, ids: &[i32]) {
        let mut waiting = self.waiting.lock();
        let mut pieces = self.shared.pieces.lock();
        pieces.announcement += 1;
        let number = pieces.announcement;
        drop(pieces);
        let mut wanted: Vec<u64> = Vec::new();
        for ids in ids.chunks(SORTED_ROWS) {
            wanted.clear();
            for start in ids.iter().filter_map(|&id| table.find_row(id)) {
                wanted.extend(self.pieces_of(start, table.row_bytes));
            }
            wanted.sort_unstable();
            wanted.dedup();
            waiting.extend(wanted.iter().map(|&piece| ((table.file, piece), number)));
        }
        self.read_waiting(&mut waiting);
    }

    /// Reads what was announced and had no room, as far as there is some now.
    fn read_waiting(&self, waiting: &mut VecDeque<(Piece, u64)>) {
        if waiting.is_empty() {
            return;
        }
        let mut requests = Vec::new();
        let mut pieces = self.shared.pieces.lock();
        while let Some(&(piece, number)) = waiting.front() {
            if self.request(&mut pieces, piece, For::Announcement(number), &mut requests).is_none() {
                break;
            }
            waiting.pop_front();
        }
        self.submit(pieces, &mut requests);
    }

    /// Gives a piece a place and adds a read, and reads for what lies between it and the one before, if that is near. Returns the place, also
    /// of a piece that has one already; `None` if there is no room.
    fn request(&self, pieces: &mut Pieces, piece: Piece, purpose: For, requests: &mut Vec<Request>) -> Option<usize> {
        if let Some(place) = pieces.find(piece) {
            if let For::Announcement(number) = purpose {
                pieces.announce(place, number);
            }
            return Some(place);
        }
        let (file, number) = piece;
        let before = requests.last().filter(|last| last.file == file);
        let before = before.map(|last| last.range.offset / self.piece_bytes as u64);
        if let Some(gap) = before.map(|before| before + 1..number).filter(|gap| gap.end <= gap.start + GAP_PIECES) {
            // All of it or nothing: a part would be read in vain.
            let missing = gap.clone().all(|number| pieces.find((file, number)).is_none());
            for number in gap.filter(|_| missing) {
                let Some(place) = pieces.take((file, number), For::Gap) else { break };
                requests.push(self.read_of(pieces, (file, number), place));
            }
        }
        let place = pieces.take(piece, purpose)?;
        requests.push(self.read_of(pieces, piece, place));
        let counters = &self.shared.core.counters;
        counters.row_reads.add(1);
        counters.row_reads_ahead.add(u64::from(purpose != For::Demand));
        Some(place)
    }

    /// The read of a piece into its place.
    fn read_of(&self, pieces: &Pieces, (file, number): Piece, place: usize) -> Request {
        // SAFETY: places are a piece apart and page-aligned, in memory that outlives the engine (see `Rows`); the place is Loading until
        // the engine reports the read, and by the first invariant of `pieces` nobody touches its memory before that.
        let destination = unsafe { Destination::new(pieces.address(place)) };
        let range = self.range(file, number);
        Request {
            token: ReadToken(place),
            generation: pieces.generation(place),
            file,
            range,
            destination,
            // Rows are wanted in the order in which they are asked for: nothing is more urgent.
            priority: Priority::Demand,
        }
    }

    /// Hands reads over; to be called with the lock, which it gives back first.
    fn submit(&self, pieces: MutexGuard<'_, Pieces>, requests: &mut Vec<Request>) {
        let was_idle = pieces.in_flight == requests.len();
        drop(pieces);
        if requests.is_empty() {
            return;
        }
        let core = &self.shared.core;
        if was_idle {
            core.reads_begin();
        }
        core.counters.read_bytes.add(requests.iter().map(|request| request.range.required as u64).sum());
        self.engine.submit(requests);
    }

    /// The numbers of the pieces that a stretch of a file has a part in.
    fn pieces_of(&self, start: u64, length: usize) -> std::ops::Range<u64> {
        let piece_bytes = self.piece_bytes as u64;
        start / piece_bytes..(start + length as u64).div_ceil(piece_bytes)
    }

    fn range(&self, file: usize, number: u64) -> Widened {
        let offset = number * self.piece_bytes as u64;
        let left = self.files[file].opened_size().saturating_sub(offset);
        Widened {
            offset,
            length: self.piece_bytes,
            head_padding: 0,
            required: left.min(self.piece_bytes as u64) as usize,
        }
    }
}
