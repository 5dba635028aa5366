//! What the system has given of some memory beside what was written to.
//!
//! Where it has huge pages, the first byte that is written takes 2 MiB. The system counts them as used from then on, so they must not
//! be counted as promised as well: weights would seem to have outgrown their budget while their slots fill.

/// What is looked at as a whole. No huge page is smaller.
const CHUNK_BYTES: usize = 2 << 20;

/// The chunks of a stretch of memory.
#[derive(Debug)]
pub(super) struct Taken {
    /// Where the first whole one begins, in bytes from the start of the memory.
    first: usize,
    chunks: Vec<Chunk>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    /// How much of it slots have that were written to.
    written_bytes: usize,
    /// All of it was found to be there.
    is_whole: bool,
}

impl Taken {
    /// Nothing of the `length` bytes from address `start` on is written to.
    pub(super) fn new(start: usize, length: usize) -> Self {
        let first = start.next_multiple_of(CHUNK_BYTES) - start;
        Self { first, chunks: vec![Chunk::default(); length.saturating_sub(first) / CHUNK_BYTES] }
    }

    /// A slot was written to that had not been. `is_there` says whether the chunk at an offset is all there.
    pub(super) fn written(&mut self, offset: usize, length: usize, is_there: impl Fn(usize) -> bool) {
        let first = self.first;
        self.each(offset, length, |index, chunk, bytes| {
            chunk.written_bytes += bytes;
            chunk.is_whole = chunk.is_whole || is_there(first + index * CHUNK_BYTES);
        });
    }

    /// A slot that was written to is given back, which breaks up huge pages.
    pub(super) fn released(&mut self, offset: usize, length: usize) {
        self.each(offset, length, |_, chunk, bytes| {
            *chunk = Chunk { written_bytes: chunk.written_bytes.saturating_sub(bytes), is_whole: false };
        });
    }

    /// A slot that was not written to is given back.
    pub(super) fn broken_up(&mut self, offset: usize, length: usize) {
        self.each(offset, length, |_, chunk, _| chunk.is_whole = false);
    }

    /// Bytes of the first `length` that are there and in no slot that was written to.
    pub(super) fn beside(&self, length: usize) -> usize {
        let starts = (self.first..length).step_by(CHUNK_BYTES);
        let chunks = self.chunks.iter().zip(starts).filter(|(chunk, _)| chunk.is_whole);
        chunks.map(|(chunk, start)| CHUNK_BYTES.min(length - start).saturating_sub(chunk.written_bytes)).sum()
    }

    /// Calls `with` for each chunk that a range touches, with its index and how many bytes of the range lie in it.
    fn each(&mut self, offset: usize, length: usize, mut with: impl FnMut(usize, &mut Chunk, usize)) {
        let (from, to) = (offset.saturating_sub(self.first), (offset + length).saturating_sub(self.first));
        for index in from / CHUNK_BYTES..to.div_ceil(CHUNK_BYTES).min(self.chunks.len()) {
            let start = index * CHUNK_BYTES;
            with(index, &mut self.chunks[index], to.min(start + CHUNK_BYTES) - from.max(start));
        }
    }
}

/// Whether all pages of the chunk at an address are in memory.
#[cfg(all(target_os = "linux", not(miri)))]
pub(super) fn is_chunk_there(address: *mut u8) -> bool {
    const PAGES_MAX: usize = CHUNK_BYTES / 4096; // no page is smaller
    let mut pages = [0_u8; PAGES_MAX];
    // SAFETY: the call writes a byte a page to `pages`, which has enough; it reads nothing at the address, which the system checks.
    let status = unsafe { libc::mincore(address.cast(), CHUNK_BYTES, pages.as_mut_ptr()) };
    let count = CHUNK_BYTES.div_ceil(crate::hw::page_size());
    status == 0 && pages.iter().take(count).all(|page| page & 1 == 1)
}

/// Not known.
#[cfg(any(not(target_os = "linux"), miri))]
pub(super) fn is_chunk_there(_address: *mut u8) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_came_with_a_huge_page_counts_until_it_is_written_to_or_given_back() {
        let mut taken = Taken::new(MIB, 8 * MIB); // whole chunks at 1, 3 and 5 MiB
        assert_eq!(taken.chunks.len(), 3);
        taken.written(0, MIB, |_| true);
        assert_eq!(taken.beside(8 * MIB), 0, "what lies before the first is in none");
        taken.written(2 * MIB + MIB / 2, MIB, |offset| offset == MIB);
        assert_eq!(taken.beside(8 * MIB), 3 * MIB / 2);
        assert_eq!(taken.beside(2 * MIB), MIB / 2, "of the open slots alone");
        taken.written(MIB, 3 * MIB / 2, |_| false);
        assert_eq!(taken.beside(8 * MIB), 0);
        taken.written(5 * MIB, MIB, |_| true);
        assert_eq!(taken.beside(8 * MIB), MIB);
        taken.released(5 * MIB, MIB);
        assert_eq!(taken.beside(8 * MIB), 0);
        taken.written(3 * MIB, MIB, |_| true);
        assert_eq!(taken.beside(8 * MIB), MIB / 2);
        taken.broken_up(5 * MIB - MIB / 2, MIB / 2);
        assert_eq!(taken.beside(8 * MIB), 0);
        taken.written(7 * MIB, MIB, |_| true);
        assert_eq!(taken.beside(8 * MIB), 0, "nor is what lies behind the last");
    }
}
