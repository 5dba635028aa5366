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
}

/// A report of memory, less what would not be promised of it.
pub fn within_promises(report: MemoryReport) -> MemoryReport {
    match cfg!(target_os = "linux") {
        true => within(report, promises_under(Path::new("/"), data_limit()).as_slice()),
        false => report,
    }
}

/// Whether what is mapped to be written to counts before it is written to.
pub fn charges_reservations() -> bool {
    cfg!(target_os = "linux") && !promises_under(Path::new("/"), data_limit()).is_empty()
}

fn within(mut report: MemoryReport, promises: &[Promises]) -> MemoryReport {
    for promised in promises {
        report.limit_bytes = report.limit_bytes.min(promised.limit_bytes);
        if promised.left_bytes < report.available_bytes {
            report.available_bytes = promised.left_bytes;
            report.limited_by =
                "what the system still promises: strict overcommit, or RLIMIT_DATA of this process".to_owned();
        }
    }
    report
}

/// Whoever counts, from a tree that holds copies of `/proc`: a limit of this process (RLIMIT_DATA, `ulimit -d`), and the system.
fn promises_under(root: &Path, limit_bytes: Option<u64>) -> Vec<Promises> {
    let read = |name: &str| std::fs::read_to_string(root.join("proc").join(name)).unwrap_or_default();
    let by_limit = limit_bytes.map(|limit_bytes| {
        let used_bytes = meminfo_bytes(&read("self/status"), "VmData").unwrap_or(0);
        Promises { left_bytes: limit_bytes.saturating_sub(used_bytes), limit_bytes }
    });
    let is_strict = read("sys/vm/overcommit_memory").trim() == "2";
    let by_system = is_strict.then(|| read("meminfo")).and_then(|text| {
        let (limit_bytes, used_bytes) = (meminfo_bytes(&text, "CommitLimit")?, meminfo_bytes(&text, "Committed_AS")?);
        Some(Promises { left_bytes: limit_bytes.saturating_sub(used_bytes), limit_bytes })
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
        let by_system = Promises { left_bytes: 3 << 10, limit_bytes: 5 << 10 };
        let by_limit = Promises { left_bytes: 7 << 10, limit_bytes: 10 << 10 };
        for (mode, expected) in [("0\n", [].as_slice()), ("1\n", &[]), ("2\n", &[by_system])] {
            root.write("proc/sys/vm/overcommit_memory", mode);
            assert_eq!(promises(None), expected, "{mode}");
            assert_eq!(promises(Some(10 << 10)), [&[by_limit], expected].concat(), "{mode}");
        }
        root.write("proc/meminfo", "CommitLimit:    5 kB\nCommitted_AS:    7 kB\n");
        assert_eq!(promises(None), [Promises { left_bytes: 0, limit_bytes: 5 << 10 }]);
    }

    #[test]
    fn the_smallest_promise_counts() {
        let machine = MemoryReport { available_bytes: 500, limit_bytes: 1000, limited_by: "machine".to_owned() };
        let large = Promises { left_bytes: 600, limit_bytes: 2000 };
        assert_eq!(within(machine.clone(), &[large]), machine);
        let report = within(machine, &[Promises { left_bytes: 100, limit_bytes: 700 }, large]);
        assert_eq!((report.available_bytes, report.limit_bytes), (100, 700));
        assert!(report.limited_by.contains("RLIMIT_DATA"), "{report:?}");
    }
}
