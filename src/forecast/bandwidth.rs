//! How fast the cores read memory, measured: computing a token is, for the most part, reading every weight once.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::hw::Profile;
use crate::persist::Store;

/// How long memory is read.
const SWEEP_TIME: Duration = Duration::from_millis(30);

/// How often it is looked whether all threads have begun.
const START_TIME: Duration = Duration::from_millis(1);

/// Bytes that all threads read over and over: more than caches hold, little enough to be had anywhere.
const SWEEP_BYTES: usize = 256 << 20;

/// Bytes that a thread reads before it looks at the clock.
const STRETCH_BYTES: usize = 1 << 20;

const FILE: &str = "machine.json";

/// Of the available memory, a measurement takes no more than one part in so many.
const SHARE: u64 = 4;

/// Looks up how fast the cores of a machine read memory, or measures it, which takes about 50 ms once per machine. `None` where there is
/// not enough memory to measure it.
pub fn measure_memory(profile: &mut Profile, store: &Store) -> Option<f64> {
    if profile.memory_bytes_per_second.is_none() {
        profile.memory_bytes_per_second =
            memory_bandwidth(store, &profile.machine(), profile.cores.parallel(), profile.memory.available_bytes);
    }
    profile.memory_bytes_per_second
}

/// What is remembered of a machine, else what a measurement of about 50 ms finds, in bytes per second. `machine` tells it
/// from others that share the cache directory. `None` when so little memory is available that a measurement could do harm.
pub fn memory_bandwidth(store: &Store, machine: &str, threads: usize, available_bytes: u64) -> Option<f64> {
    let affordable = SWEEP_BYTES as u64 * SHARE <= available_bytes;
    remembered(store, machine, threads, || if affordable { measure_memory_bandwidth(threads) } else { None })
}

/// What a measurement finds now, which takes about 50 ms, in bytes per second; `None` where the system refuses the memory or the
/// threads for it. Nothing is remembered.
pub fn measure_memory_bandwidth(threads: usize) -> Option<f64> {
    sweep(threads, SWEEP_BYTES)
}

fn remembered(store: &Store, machine: &str, threads: usize, measure: impl FnOnce() -> Option<f64>) -> Option<f64> {
    let key = format!("{machine}, {threads} threads");
    let stored = store.facts(FILE);
    let sane = |bytes_per_second: &f64| bytes_per_second.is_finite() && (1e8..1e14).contains(bytes_per_second);
    let known = stored.get(&key).and_then(|entry| entry["memory_bytes_per_second"].as_f64()).filter(sane);
    if let Some(bytes_per_second) = known {
        return Some(bytes_per_second);
    }
    let bytes_per_second = measure()?;
    if sane(&bytes_per_second) {
        store.change(FILE, |stored| {
            stored.insert(key, json!({"memory_bytes_per_second": bytes_per_second}));
        });
    }
    Some(bytes_per_second)
}

/// Reads memory with some threads at once; bytes per second of all together. `None` where the system refuses memory or threads: a limit
/// of this process (`ulimit -v`) may be reached by what a measurement takes, and that must harm nobody.
fn sweep(threads: usize, bytes: usize) -> Option<f64> {
    let threads = threads.max(1);
    let stretch_words = STRETCH_BYTES / size_of::<u64>();
    let words = (bytes / threads / STRETCH_BYTES).max(1) * stretch_words;
    let memories: Vec<Vec<u64>> = (0..threads).map(|_| reserve(words)).collect::<Option<_>>()?;
    let (ready, finished, read_bytes) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let (all_started, elapsed) = std::thread::scope(|scope| {
        let mut started = 0;
        for mut memory in memories {
            let (ready, finished, read_bytes) = (&ready, &finished, &read_bytes);
            let body = move || {
                // Not zeros: those would be one page, mapped again and again. Written here, so that it lies near this thread's core.
                memory.resize(words, 1);
                ready.fetch_add(1, Ordering::Release);
                let mut stretches = memory.chunks_exact(stretch_words).cycle();
                let mut read = 0;
                while !finished.load(Ordering::Relaxed) {
                    let stretch = stretches.next().unwrap_or_default();
                    black_box(black_box(stretch).iter().fold(0u64, |sum, word| sum.wrapping_add(*word)));
                    read += STRETCH_BYTES as u64;
                }
                read_bytes.fetch_add(read, Ordering::Relaxed);
            };
            started += usize::from(std::thread::Builder::new().spawn_scoped(scope, body).is_ok());
        }
        while ready.load(Ordering::Acquire) < started {
            std::thread::sleep(START_TIME);
        }
        let start = Instant::now();
        std::thread::sleep(SWEEP_TIME);
        finished.store(true, Ordering::Relaxed);
        (started == threads, start.elapsed())
    });
    all_started.then(|| read_bytes.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64())
}

/// Memory for so many words, if it can be had.
fn reserve(words: usize) -> Option<Vec<u64>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(words).ok()?;
    Some(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;

    #[test]
    fn a_bandwidth_is_measured_once_and_rubbish_is_measured_again() {
        let directory = TestDirectory::new();
        let store = Store::at(directory.path());
        let never = || -> Option<f64> { panic!("it is known") };
        assert_eq!(remembered(&store, "a", 2, || Some(5e9)), Some(5e9));
        assert_eq!(remembered(&store, "a", 2, never), Some(5e9));
        assert_eq!(remembered(&store, "a", 4, || Some(7e9)), Some(7e9));
        assert_eq!(remembered(&store, "b", 2, || Some(9e9)), Some(9e9));
        assert_eq!(remembered(&store, "a", 2, never), Some(5e9));
        for rubbish in [r#"{"a, 2 threads": {"memory_bytes_per_second": -5}}"#, "[]", "{"] {
            directory.write("machine.json", rubbish);
            assert_eq!(remembered(&store, "a", 2, || Some(6e9)), Some(6e9), "{rubbish}");
        }
        assert_eq!(remembered(&Store::NOWHERE, "a", 2, || Some(8e9)), Some(8e9));
        // Nothing is measured or kept where memory is too short for it.
        assert_eq!(remembered(&store, "c", 2, || None), None);
        assert_eq!(remembered(&store, "c", 2, || Some(8e9)), Some(8e9));
    }

    #[test]
    fn memory_is_read_by_every_thread() {
        // What it says depends on the machine; that it is the speed of memory and not of an empty loop does not.
        for threads in [0, 1, 3] {
            let bytes_per_second = sweep(threads, 4 << 20).unwrap();
            assert!((1.0..1e13).contains(&bytes_per_second), "{bytes_per_second}");
        }
        assert_eq!(sweep(1, usize::MAX / 4), None, "memory that cannot be had");
    }
}
