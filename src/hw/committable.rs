//! How much more memory the system would promise, where it promises no more than it has.
//!
//! Elsewhere memory is promised freely and counts when it is touched. Where it is not, what a mapping may come to hold counts from the
//! start, so a budget that is free and not promised would be refused at its first use.

use std::path::Path;

use super::MemoryReport;
use super::memory::meminfo_bytes;

/// Memory that may be mapped to be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Promises {
    /// Bytes that may still be.
    left_bytes: u64,
    /// Bytes in all.
    limit_bytes: u64,
    /// To this process alone.
    is_own: bool,
}

/// Memory within what is promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promised {
    /// How much.
    pub memory: MemoryReport,
    /// What limits it is a promise to this process alone.
    pub is_own: bool,
}

/// A report of memory, less what would not be promised of it; `spoken_for_bytes` of the promises will be taken by others.
pub fn within_promises(memory: MemoryReport, spoken_for_bytes: u64) -> Promised {
    let promises = if IS_KNOWN { promises_under(Path::new("/"), data_limit()) } else { Vec::new() };
    within(memory, spoken_for_bytes, &promises)
}

/// Whether it can be known here.
const IS_KNOWN: bool = cfg!(all(target_os = "linux", not(miri)));

/// Whether what is mapped to be written to counts before it is written to.
pub fn charges_reservations() -> bool {
    IS_KNOWN && !promises_under(Path::new("/"), data_limit()).is_empty()
}

fn within(mut memory: MemoryReport, spoken_for_bytes: u64, promises: &[Promises]) -> Promised {
    let mut is_own = false;
    for promised in promises {
        memory.limit_bytes = memory.limit_bytes.min(promised.limit_bytes);
        let left_bytes = promised.left_bytes.saturating_sub(spoken_for_bytes);
        if left_bytes < memory.available_bytes {
            memory.available_bytes = left_bytes;
            let by = if promised.is_own { "RLIMIT_DATA of this process" } else { "strict overcommit" };
            memory.limited_by = format!("what the system still promises: {by}");
            is_own = promised.is_own;
        }
    }
    Promised { memory, is_own }
}

/// Whoever counts, from a tree that holds copies of `/proc`: a limit of this process (RLIMIT_DATA, `ulimit -d`), and the system.
fn promises_under(root: &Path, limit_bytes: Option<u64>) -> Vec<Promises> {
    let read = |name: &str| std::fs::read_to_string(root.join("proc").join(name)).unwrap_or_default();
    let by_limit = limit_bytes.map(|limit_bytes| {
        let used_bytes = meminfo_bytes(&read("self/status"), "VmData").unwrap_or(0);
        Promises { left_bytes: limit_bytes.saturating_sub(used_bytes), limit_bytes, is_own: true }
    });
    let is_strict = read("sys/vm/overcommit_memory").trim() == "2";
    let by_system = is_strict.then(|| read("meminfo")).and_then(|text| {
        let (limit_bytes, used_bytes) = (meminfo_bytes(&text, "CommitLimit")?, meminfo_bytes(&text, "Committed_AS")?);
        Some(Promises { left_bytes: limit_bytes.saturating_sub(used_bytes), limit_bytes, is_own: false })
    });
    by_limit.into_iter().chain(by_system).collect()
}

fn data_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes to `limit`, which outlives it.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_DATA, &raw mut limit) };
    (status == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;

    #[test]
    fn what_is_promised_counts_where_promises_are_kept() {
        let root = TestDirectory::new();
        let promises = |limit_bytes| promises_under(root.path(), limit_bytes);
        assert_eq!(promises(None), [], "nothing can be read");
        root.write("proc/meminfo", "MemTotal: 9 kB\nCommitLimit:    5 kB\nCommitted_AS:    2 kB\n");
        root.write("proc/self/status", "VmSize:\t 800 kB\nVmData:\t 3 kB\n");
        let by_system = Promises { left_bytes: 3 << 10, limit_bytes: 5 << 10, is_own: false };
        let by_limit = Promises { left_bytes: 7 << 10, limit_bytes: 10 << 10, is_own: true };
        for (mode, expected) in [("0\n", [].as_slice()), ("1\n", &[]), ("2\n", &[by_system])] {
            root.write("proc/sys/vm/overcommit_memory", mode);
            assert_eq!(promises(None), expected, "{mode}");
            assert_eq!(promises(Some(10 << 10)), [&[by_limit], expected].concat(), "{mode}");
        }
        root.write("proc/meminfo", "CommitLimit:    5 kB\nCommitted_AS:    7 kB\n");
        assert_eq!(promises(None), [Promises { left_bytes: 0, limit_bytes: 5 << 10, is_own: false }]);
    }

    #[test]
    fn the_smallest_promise_counts() {
        let machine = MemoryReport { available_bytes: 500, limit_bytes: 1000, limited_by: "machine".to_owned() };
        let promises = |left_bytes, limit_bytes, is_own| Promises { left_bytes, limit_bytes, is_own };
        let large = promises(600, 2000, false);
        let unlimited = Promised { memory: machine.clone(), is_own: false };
        assert_eq!(within(machine.clone(), 100, &[large]), unlimited);
        for is_own in [false, true] {
            let within = within(machine.clone(), 30, &[promises(100, 700, is_own), large]);
            assert_eq!((within.memory.available_bytes, within.memory.limit_bytes), (70, 700));
            assert_eq!(within.is_own, is_own);
            assert_eq!(within.memory.limited_by.contains("RLIMIT_DATA"), is_own, "{within:?}");
        }
    }
}
