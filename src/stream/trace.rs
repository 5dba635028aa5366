//! `HYPURA_TRACE`: records which experts each token used, for replay against cache policies.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use parking_lot::Mutex;

use crate::error::{Error, ErrorCode, Result};

/// Writes one line per token, layer and expert.
///
/// Columns: `turn, phase (0 prefill, 1 decode), step, layer, slot, expert, weight, residency, expert_bytes`. The router's
/// weight is not known to us and written as 0; residency is 1 when the expert was in RAM.
pub(super) struct Trace {
    file: Mutex<BufWriter<File>>,
}

/// One layer's routing of one batch.
pub(super) struct Routing<'a> {
    pub(super) step: u64,
    pub(super) layer: u32,
    /// Expert ids, `used` for each token.
    pub(super) experts: &'a [i32],
    pub(super) used: usize,
    pub(super) expert_bytes: usize,
}

impl Trace {
    pub(super) fn create(path: &Path, model: &str) -> Result<Self> {
        let failed = |error| Error::new(ErrorCode::Config, format!("HYPURA_TRACE={}: {error}", path.display()));
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        writeln!(file, "# model: {model}").map_err(failed)?;
        writeln!(file, "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes").map_err(failed)?;
        Ok(Self { file: Mutex::new(file) })
    }

    /// Records a batch. A full disk loses lines of the trace, never a token.
    pub(super) fn record(&self, routing: &Routing<'_>, resident: impl Fn(i32) -> bool) {
        let mut file = self.file.lock();
        let tokens = routing.experts.len() / routing.used.max(1);
        let phase = u8::from(tokens == 1);
        for token in routing.experts.chunks(routing.used.max(1)) {
            for (slot, &expert) in token.iter().enumerate() {
                let residency = u8::from(resident(expert));
                let Routing { step, layer, expert_bytes, .. } = routing;
                let _ = writeln!(file, "0,{phase},{step},{layer},{slot},{expert},0,{residency},{expert_bytes}");
            }
        }
    }
}
