//! Tables that are looked up: of which a token uses some rows, and the rest stays on the drive.
//!
//! What is demanded is known at once, so all of it that is not kept is read together, with as much in flight as the drive
//! takes. The engine is one of its own: what suits reads of MiB does not suit those of a page.

mod cache;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorCode, Result};
use crate::gguf::Gguf;
use crate::io::{self, Destination, DirectFile, Engine, Priority, Request, Sink, Tuning, Widened};
use crate::memory::Arena;

use super::core::Core;
use super::tensors::BlockExtent;
use super::verify::Verifier;
use cache::{Piece, RowCache};

/// Reads in flight. Drives that read small pieces at more than one at a time want dozens.
const DEPTH: usize = 64;

/// Pieces that are asked for at a time, at most: what the last of them leave idle is then little.
const WAVE_PIECES_MAX: usize = 512;

/// The least that is read. A drive's own page is no smaller.
const PIECE_BYTES_MIN: usize = 4096;

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Its index in [`Gguf::tensors`].
    pub(super) tensor: usize,
    file: usize,
    offset: u64,
    row_bytes: usize,
    row_count: u64,
}

impl Table {
    pub(super) fn of(gguf: &Gguf, tensor: usize) -> Self {
        let info = &gguf.tensors()[tensor];
        let row_count = info.shape[1..].iter().product::<u64>().max(1);
        Self {
            tensor,
            file: info.file,
            offset: info.offset,
            row_bytes: (info.size_bytes / row_count) as usize,
            row_count,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.row_bytes as u64 * self.row_count
    }

    fn row(&self, id: i32) -> Result<u64> {
        let id = u64::try_from(id).ok().filter(|&id| id < self.row_count);
        let outside = || format!("there is no such row: the table has {}", self.row_count);
        let id = id.ok_or_else(|| Error::new(ErrorCode::InvalidArgument, outside()))?;
        Ok(self.offset + id * self.row_bytes as u64)
    }
}

/// Reads rows.
pub(super) struct Rows {
    // Dropped first: afterwards nothing writes to the staging memory any more.
    engine: Box<dyn Engine>,
    done: Arc<Done>,
    files: Arc<[DirectFile]>,
    piece_bytes: usize,
    wave_pieces: usize,
    memory_bytes: u64,
    /// One demand at a time.
    work: Mutex<Work>,
}

struct Work {
    cache: RowCache,
    /// What is read arrives here, one piece beside the other.
    staging: Arena,
    /// Rows that are not complete yet: the first byte in the file, and which of the demanded they are.
    pending: Vec<(u64, usize)>,
    missing: Vec<u64>,
    requests: Vec<Request>,
    /// Of the wave: a place is read into once in each.
    generation: u64,
}

/// How many reads of a wave are not over yet, and the first error among them.
#[derive(Default)]
struct Done {
    state: Mutex<(usize, Option<Error>)>,
    changed: Condvar,
}

impl Sink for Done {
    fn finished(&self, _token: usize, outcome: Result<()>) {
        let mut state = self.state.lock();
        state.0 -= 1;
        if let Err(error) = outcome {
            state.1.get_or_insert(error);
        }
        if state.0 == 0 {
            self.changed.notify_all();
        }
    }

    fn broken(&self, error: Error) {
        let mut state = self.state.lock();
        state.0 = 0;
        state.1 = Some(error);
        self.changed.notify_all();
    }
}

impl Rows {
    /// Starts reading from these files within `memory_bytes`.
    pub(super) fn start(files: &Arc<[DirectFile]>, tuning: &Tuning, memory_bytes: u64) -> Result<Self> {
        let units = files.iter().map(|file| file.alignment()).map(|unit| unit.offset_bytes.max(unit.memory_bytes));
        let piece_bytes = units.fold(PIECE_BYTES_MIN, usize::max);
        let pieces = (memory_bytes as usize / piece_bytes).max(1);
        let wave_pieces = (pieces / 4).clamp(1, WAVE_PIECES_MAX);
        let done = Arc::new(Done::default());
        let tuning =
            Tuning { depth: DEPTH.min(wave_pieces), block_bytes: piece_bytes.max(tuning.block_bytes), ..*tuning };
        let engine = io::start(&tuning, Arc::clone(files), wave_pieces, Arc::clone(&done) as Arc<dyn Sink>)?;
        let work = Work {
            cache: RowCache::new(piece_bytes, pieces - wave_pieces),
            staging: Arena::new(wave_pieces * piece_bytes)?,
            pending: Vec::new(),
            missing: Vec::new(),
            requests: Vec::new(),
            generation: 0,
        };
        Ok(Self {
            engine,
            done,
            files: Arc::clone(files),
            piece_bytes,
            wave_pieces,
            memory_bytes,
            work: Mutex::new(work),
        })
    }

    /// Bytes of all memory for rows.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Bytes of the pieces that are kept.
    pub(super) fn held_bytes(&self) -> u64 {
        self.work.lock().cache.held_bytes()
    }

    /// Copies rows of a table to `destination`, one after the other as they are demanded, and compares them with the file where
    /// somebody wants that.
    pub(super) fn read(
        &self,
        core: &Core,
        verifier: Option<&Verifier>,
        table: &Table,
        ids: &[i32],
        destination: &mut [u8],
    ) -> Result<()> {
        if ids.len().checked_mul(table.row_bytes) != Some(destination.len()) {
            let message = format!("{} rows do not have {} bytes", ids.len(), destination.len());
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        }
        let mut work = self.work.lock();
        self.take_what_is_kept(&mut work, table, ids, destination)?;
        core.counters.rows.add(ids.len() as u64);
        core.counters.row_reads.add(work.missing.len() as u64);
        let outcome = self.read_missing(core, &mut work, table, destination);
        drop(work);
        let check = |()| match verifier {
            Some(verifier) => verify(verifier, table, ids, destination),
            None => Ok(()),
        };
        outcome.and_then(check).inspect_err(|error| core.fail(core.state.lock(), error.clone()))
    }

    /// Copies what is in memory, and finds out what is not.
    fn take_what_is_kept(&self, work: &mut Work, table: &Table, ids: &[i32], destination: &mut [u8]) -> Result<()> {
        let piece_bytes = self.piece_bytes as u64;
        work.pending.clear();
        work.missing.clear();
        for (index, (&id, row)) in ids.iter().zip(destination.chunks_exact_mut(table.row_bytes)).enumerate() {
            let start = table.row(id)?;
            let before = work.missing.len();
            for number in start / piece_bytes..(start + row.len() as u64).div_ceil(piece_bytes) {
                match work.cache.get((table.file, number)) {
                    Some(bytes) => copy_overlap(bytes, number * piece_bytes, row, start),
                    None => work.missing.push(number),
                }
            }
            if work.missing.len() > before {
                work.pending.push((start, index));
            }
        }
        work.missing.sort_unstable();
        work.missing.dedup();
        work.pending.sort_unstable();
        Ok(())
    }

    /// Reads what is missing, a wave at a time, and completes the rows with it.
    fn read_missing(&self, core: &Core, work: &mut Work, table: &Table, destination: &mut [u8]) -> Result<()> {
        let Work { cache, staging, pending, missing, requests, generation } = work;
        for wave in missing.chunks(self.wave_pieces) {
            *generation += 1;
            requests.extend(wave.iter().enumerate().map(|(place, &number)| {
                // SAFETY: places are a piece apart and within the staging memory, which is page-aligned and which, by the lock
                // that `work` is under, nobody else uses before this wave is over. `self` drops the engine before that memory.
                let destination = unsafe { Destination::new(staging.as_mut_ptr().add(place * self.piece_bytes)) };
                let range = self.range(table.file, number);
                Request {
                    token: place,
                    generation: *generation,
                    file: table.file,
                    range,
                    destination,
                    priority: Priority::Demand,
                }
            }));
            self.await_wave(core, requests)?;
            for (place, &number) in wave.iter().enumerate() {
                let length = self.range(table.file, number).required;
                // SAFETY: the engine has reported all reads of this wave as complete, so the piece's bytes are written, and the
                // engine writes no more of them; the memory lives as long as `staging`.
                let bytes = unsafe {
                    std::slice::from_raw_parts(staging.as_mut_ptr().add(place * self.piece_bytes).cast_const(), length)
                };
                complete(bytes, number * self.piece_bytes as u64, table, pending, destination);
                let piece: Piece = (table.file, number);
                cache.insert(piece, bytes);
            }
        }
        Ok(())
    }

    fn range(&self, file: usize, number: u64) -> Widened {
        let offset = number * self.piece_bytes as u64;
        let left = self.files[file].opened_size().saturating_sub(offset);
        Widened { offset, length: self.piece_bytes, lead: 0, required: left.min(self.piece_bytes as u64) as usize }
    }

    /// Submits a wave and waits until all of it is over, whatever becomes of it.
    fn await_wave(&self, core: &Core, requests: &mut Vec<Request>) -> Result<()> {
        let bytes: usize = requests.iter().map(|request| request.range.required).sum();
        let since = Instant::now();
        core.reads_begin();
        *self.done.state.lock() = (requests.len(), None);
        self.engine.submit(requests);
        let mut state = self.done.state.lock();
        while state.0 > 0 {
            self.done.changed.wait(&mut state);
        }
        let error = state.1.take();
        drop(state);
        core.reads_end();
        core.counters.stall_time.add_time(since.elapsed());
        core.counters.read_bytes.add(bytes as u64);
        error.map_or(Ok(()), Err)
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

/// Gives a piece to all the pending rows, in the order of the file, that have a part of it.
fn complete(piece: &[u8], piece_start: u64, table: &Table, pending: &[(u64, usize)], destination: &mut [u8]) {
    let row_bytes = table.row_bytes;
    let first = pending.partition_point(|&(start, _)| start + row_bytes as u64 <= piece_start);
    let end = piece_start + piece.len() as u64;
    for &(start, index) in pending[first..].iter().take_while(|&&(start, _)| start < end) {
        copy_overlap(piece, piece_start, &mut destination[index * row_bytes..][..row_bytes], start);
    }
}

fn verify(verifier: &Verifier, table: &Table, ids: &[i32], rows: &[u8]) -> Result<()> {
    ids.iter().zip(rows.chunks_exact(table.row_bytes)).try_for_each(|(&id, row)| {
        let extent = BlockExtent { file: table.file, offset: table.row(id)?, size_bytes: row.len() };
        verifier.check(extent, row)
    })
}
