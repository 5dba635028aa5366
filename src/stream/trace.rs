//! `HYPURA_TRACE`: records which experts each token used, for replay against cache policies.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use parking_lot::Mutex;

use crate::error::{Error, ErrorCode, Result};
use crate::index::ExpertId;

/// Writes one line per token, layer and expert.
///
/// Columns: `turn, phase (0 prefill, 1 decode), step, layer, slot, expert, weight, residency, expert_bytes`. The
/// router's weight is not known to us and written as 0; residency is 1 when the expert was in RAM.
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
    pub(super) fn record(&self, routing: &Routing<'_>, resident: impl Fn(ExpertId) -> bool) {
        let mut file = self.file.lock();
        let tokens = routing.experts.len() / routing.used.max(1);
        let phase = u8::from(tokens == 1);
        for token in routing.experts.chunks(routing.used.max(1)) {
            for (slot, &expert) in token.iter().enumerate() {
                let residency = u8::from(ExpertId::of_host(expert).is_some_and(&resident));
                let Routing { step, layer, expert_bytes, .. } = routing;
                let _ = writeln!(file, "0,{phase},{step},{layer},{slot},{expert},0,{residency},{expert_bytes}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;

    #[test]
    fn what_is_recorded_can_be_replayed() {
        let directory = TestDirectory::new();
        let path = directory.path().join("trace.csv");
        let trace = Trace::create(&path, "tiny.gguf").unwrap();
        // A prompt of two tokens and a token, over layers 1 and 3.
        for (step, layer, experts) in
            [(1, 1, &[4, 0, 0, 2][..]), (1, 3, &[1, 2, 1, 3]), (2, 1, &[4, 2]), (2, 3, &[0, 1])]
        {
            trace.record(&Routing { step, layer, experts, used: 2, expert_bytes: 64 }, |expert| expert == ExpertId(4));
        }
        drop(trace);
        let replayed = crate::replay::Trace::open(&path).unwrap();
        assert_eq!(replayed.model, "tiny.gguf");
        assert_eq!((replayed.shape.layer_count, replayed.shape.expert_count), (2, 5));
        let passes: Vec<(bool, u32, usize)> = replayed
            .passes
            .iter()
            .map(|pass| (pass.is_decode, pass.layers[0].token_count, pass.layers[0].experts.len()))
            .collect();
        assert_eq!(passes, [(false, 2, 3), (true, 1, 2)]);
    }
}
