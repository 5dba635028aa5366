//! Bringing files into the page cache at the drive's speed, for a host that is about to map them.
//!
//! A mapping is filled by one thread that asks for the next pages when it has the last: a drive that wants several reads at once is idle half
//! of the time. Here some threads ask for pages well ahead of it. Nothing is copied, and what is there already costs next to nothing.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// As many as it takes to keep a drive busy; each waits most of the time.
const THREADS: usize = 4;

/// What a thread takes on at a time, and what it asks the kernel for at once: it stops between two of these.
const PIECE_BYTES: u64 = 16 << 20;
const STEP_BYTES: u64 = 2 << 20;

/// Reading that goes on until all is there, or until this is dropped.
#[derive(Debug)]
pub struct ReadAhead {
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
#[derive(Debug)]
struct Work {
    files: Vec<File>,
    /// A file and a stretch of it, in the order in which a loader wants them.
    pieces: Vec<(usize, Range<u64>)>,
    /// The first one that nobody has taken.
    next: AtomicUsize,
    stop: AtomicBool,
}

impl ReadAhead {
    /// Starts reading, from the first file's first byte on. A file that cannot be opened is left to whoever wants it.
    pub fn start<'a>(paths: impl Iterator<Item = &'a Path>) -> Self {
        let files: Vec<File> = paths.filter_map(|path| File::open(path).ok()).collect();
        let pieces_of = |(index, file): (usize, &File)| {
            let size_bytes = file.metadata().map_or(0, |status| status.len());
            let starts = (0..size_bytes).step_by(PIECE_BYTES as usize);
            starts.map(move |start| (index, start..size_bytes.min(start + PIECE_BYTES)))
        };
        let pieces = files.iter().enumerate().flat_map(pieces_of).collect();
        let work = Arc::new(Work { files, pieces, next: AtomicUsize::new(0), stop: AtomicBool::new(false) });
        let thread = |number: usize| {
            let work = Arc::clone(&work);
            // Without a thread it is as slow as without us.
            std::thread::Builder::new().name(format!("hypura-ahead-{number}")).spawn(move || work.run()).ok()
        };
        let threads = (0..THREADS.min(work.pieces.len())).filter_map(thread).collect();
        Self { work, threads }
    }

    /// Waits until all has been asked for.
    #[cfg(test)]
    fn finish(mut self) {
        self.threads.drain(..).for_each(|thread| thread.join().expect("it does not panic"));
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.work.stop.store(true, Ordering::Relaxed);
        // One that panicked has nothing left to do.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Work {
    fn run(&self) {
        while let Some((file, piece)) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            for offset in piece.clone().step_by(STEP_BYTES as usize) {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                will_need(&self.files[*file], offset, STEP_BYTES);
            }
        }
    }
}

/// Asks the kernel for pages of a file; it waits for the drive only while that has all that it can take.
#[cfg(target_os = "linux")]
fn will_need(file: &File, offset: u64, length: u64) {
    // SAFETY: the descriptor is open; the call takes no memory of ours.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset as i64, length as i64, libc::POSIX_FADV_WILLNEED) };
}

#[cfg(target_os = "macos")]
fn will_need(file: &File, offset: u64, length: u64) {
    let mut range = libc::radvisory { ra_offset: offset as i64, ra_count: length as i32 };
    // SAFETY: the descriptor is open, and `range` outlives the call, which only reads it.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_RDADVISE, &raw mut range) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::gguf::test_directory::TestDirectory;
    use crate::io::drop_from_page_cache;

    /// How many pages of a file are in the page cache.
    fn cached_pages(path: &Path) -> (usize, usize) {
        let file = File::open(path).unwrap();
        // SAFETY: the file stays as it is while it is mapped.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        let mut pages = vec![0_u8; map.len().div_ceil(crate::hw::page_size())];
        // SAFETY: the mapping is that long, and there is a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), pages.as_mut_ptr().cast()) }, 0);
        (pages.iter().filter(|&&page| page & 1 == 1).count(), pages.len())
    }

    #[test]
    fn files_are_brought_into_memory_and_what_is_missing_is_left_out() {
        let directory = TestDirectory::new();
        let path = |name: &str| directory.path().join(name);
        for (name, size_bytes) in [("one", (33 << 20) + 5), ("two", 3)] {
            std::fs::write(path(name), vec![1; size_bytes]).unwrap();
            let file = File::open(path(name)).unwrap();
            file.sync_all().unwrap();
            drop_from_page_cache(&file, 0, size_bytes as u64);
        }
        let paths = [path("one"), path("missing"), path("two")];
        ReadAhead::start(paths.iter().map(|path| &**path)).finish();
        for name in ["one", "two"] {
            // The drive takes its time for what was asked for; a page that nobody asked for never comes.
            let is_cached = || matches!(cached_pages(&path(name)), (cached, all) if cached == all);
            (0..3000).find(|_| {
                is_cached() || {
                    std::thread::sleep(Duration::from_millis(10));
                    false
                }
            });
            assert!(is_cached(), "{name}: {:?}", cached_pages(&path(name)));
        }
        drop(ReadAhead::start(paths.iter().map(|path| &**path)));
    }
}
