//! The quantisations of one model beside each other: which of them fit, and how fast each would be here.

use serde_json::{Value, json};

use crate::format::{Table, bytes, figure};
use crate::hub::variants::Variant;
use crate::placement::Placement;

/// A row: a model and what is expected of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its quantisation.
    pub tag: String,
    /// Its size.
    pub size_bytes: u64,
    /// Whether its weights fit into memory.
    pub fits: bool,
    /// Tokens per second; `None` when memory is too little for it.
    pub speed: Option<f64>,
    /// Whether that was planned from its own header, and not estimated from another's.
    pub is_planned: bool,
}

/// The speed of one model by memory, from which those of the same shape and another size are estimated.
#[derive(Clone, Debug)]
pub struct Curve {
    points: Vec<(u64, f64)>,
    weight_bytes: u64,
    kv_cache_bytes: u64,
    ram_bytes: u64,
}

impl Curve {
    /// Of a placement whose speeds by memory are known.
    pub fn new(placement: &Placement, points: &[(u64, f64)], weight_bytes: u64) -> Self {
        let (kv_cache_bytes, ram_bytes) = (placement.kv_cache_bytes, placement.ram_bytes);
        Self { points: points.to_vec(), weight_bytes, kv_cache_bytes, ram_bytes }
    }

    /// What is expected of a model of another size. Its time for a token grows with its bytes, whether they are
    /// computed on or read, and memory holds a smaller share of them.
    pub fn estimate(&self, variant: &Variant) -> Candidate {
        let size_bytes = variant.size_bytes();
        let factor = size_bytes as f64 / self.weight_bytes.max(1) as f64;
        let for_weights = self.ram_bytes.saturating_sub(self.kv_cache_bytes);
        let as_if = (for_weights as f64 / factor.max(1e-9)) as u64;
        let speed = self.speed_at(as_if.saturating_add(self.kv_cache_bytes)).map(|speed| speed / factor.max(1e-9));
        Candidate { tag: variant.tag.clone(), size_bytes, fits: size_bytes <= for_weights, speed, is_planned: false }
    }

    /// The speed with so much memory, between the known points; `None` below the first.
    fn speed_at(&self, ram_bytes: u64) -> Option<f64> {
        let after = self.points.iter().position(|(ram, _)| *ram > ram_bytes);
        match after {
            Some(0) => None,
            None => self.points.last().map(|(_, speed)| *speed),
            Some(after) => {
                let ((low, slow), (high, fast)) = (self.points[after - 1], self.points[after]);
                let share = (ram_bytes - low) as f64 / (high - low).max(1) as f64;
                Some(slow + (fast - slow) * share)
            }
        }
    }
}

/// The largest that is expected to be so fast.
pub fn largest_reaching(candidates: &[Candidate], speed: f64) -> Option<&Candidate> {
    let reaching = candidates.iter().filter(|candidate| candidate.speed.is_some_and(|expected| expected >= speed));
    reaching.max_by_key(|candidate| candidate.size_bytes)
}

/// The rows as a table.
pub fn table(candidates: &[Candidate]) -> String {
    let mut table = Table::new(&["quantisation", "size", "fits", "tokens per second"]);
    for candidate in candidates {
        let about = if candidate.is_planned { "" } else { "~" };
        let speed = candidate.speed.map_or("too little memory".to_owned(), |speed| format!("{about}{}", figure(speed)));
        let fits = if candidate.fits { "yes" } else { "no" };
        table.row(vec![candidate.tag.clone(), bytes(candidate.size_bytes), fits.to_owned(), speed]);
    }
    table.text()
}

/// The rows as JSON.
pub fn to_json(candidates: &[Candidate]) -> Value {
    let row = |candidate: &Candidate| {
        json!({
            "quantization": candidate.tag,
            "bytes": candidate.size_bytes,
            "fits": candidate.fits,
            "tokens_per_second": candidate.speed,
            "is_planned": candidate.is_planned,
        })
    };
    Value::Array(candidates.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::listing::RemoteFile;

    fn variant(tag: &str, size_bytes: u64) -> Variant {
        let file = RemoteFile { path: format!("{tag}.gguf"), size_bytes, hash: "5a".to_owned(), is_sha256: true };
        Variant { tag: tag.to_owned(), files: vec![file] }
    }

    #[test]
    fn sizes_decide_speeds() {
        // 100 bytes of weights: at 20 of memory 2 a second, at 100 all in memory and 10.
        let curve = Curve { points: vec![(20, 2.0), (100, 10.0)], weight_bytes: 100, kv_cache_bytes: 0, ram_bytes: 60 };
        let speed = |size: u64| curve.estimate(&variant("x", size)).speed;
        assert_eq!(speed(100), Some(6.0));
        assert_eq!(speed(50), Some(20.0), "half the bytes, all in memory");
        assert_eq!(speed(200), Some(1.5));
        assert_eq!(speed(400), None);
        assert!(curve.estimate(&variant("x", 60)).fits && !curve.estimate(&variant("x", 61)).fits);
        let all =
            [("a", 400), ("b", 200), ("c", 100), ("d", 50)].map(|(tag, size)| curve.estimate(&variant(tag, size)));
        let largest = |speed: f64| largest_reaching(&all, speed).map(|candidate| candidate.tag.as_str());
        assert_eq!((largest(1.0), largest(5.0), largest(7.0), largest(50.0)), (Some("b"), Some("c"), Some("d"), None));
        assert!(table(&all).contains("~6.0") && table(&all).contains("too little memory"), "{}", table(&all));
    }
}
