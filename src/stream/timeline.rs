//! `HYPURA_TIMELINE`: records when each tensor was read, waited for and computed on, to see where time goes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use parking_lot::Mutex;

use crate::error::{Error, ErrorCode, Result};

/// What happens to a tensor. A tensor of experts has a name for each: `tensor#expert`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Its read is given to the engine.
    ReadBegin,
    /// Its bytes are there.
    ReadEnd,
    /// A multiplication waits for bytes.
    WaitBegin,
    /// It has some.
    WaitEnd,
    /// A multiplication has its weights.
    ComputeBegin,
    /// It has given them back.
    ComputeEnd,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::ReadBegin => "read_begin",
            Self::ReadEnd => "read_end",
            Self::WaitBegin => "wait_begin",
            Self::WaitEnd => "wait_end",
            Self::ComputeBegin => "compute_begin",
            Self::ComputeEnd => "compute_end",
        }
    }
}

/// Writes one line per event: `seconds,event,tensor,bytes`.
pub(super) struct Timeline {
    file: Mutex<BufWriter<File>>,
    started: Instant,
}

impl Timeline {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let failed = |error| Error::new(ErrorCode::Config, format!("HYPURA_TIMELINE={}: {error}", path.display()));
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        writeln!(file, "seconds,event,tensor,bytes").map_err(failed)?;
        Ok(Self { file: Mutex::new(file), started: Instant::now() })
    }

    /// Records an event. A full disk loses lines, never a token.
    pub(super) fn record(&self, event: Event, tensor: &str, bytes: usize) {
        let mut file = self.file.lock();
        let seconds = self.started.elapsed().as_secs_f64();
        let _ = writeln!(file, "{seconds:.6},{},{tensor},{bytes}", event.name());
    }
}
