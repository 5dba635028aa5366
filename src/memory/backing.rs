//! What a pool of slots lies in.

/// Memory for slots: one stretch of addresses that stays where it is. Ordinary memory ([`Arena`](super::Arena)) is one; memory that is pinned
/// for a GPU, or mapped from one, is another. Reads write to it, so every address must be one that `pread` may be given.
pub trait Backing: std::fmt::Debug + Send {
    /// Bytes.
    fn length(&self) -> usize;

    /// The address `offset` bytes in, which is less than the length. It stays the same and valid until this is dropped.
    fn address(&self, offset: usize) -> *mut u8;

    /// Nothing in this range is needed any more: what can be given back to the system is. Nobody may touch it until it is opened again,
    /// with contents that are undefined.
    fn release(&mut self, offset: usize, length: usize);

    /// The same for a range that no slot has written to: huge pages may have come with what was written beside it, and go back whole.
    fn release_unwritten(&mut self, _offset: usize, _length: usize) {}

    /// A range that was released, or was closed from the start, is going to be used. Says whether the system allows it.
    fn open(&mut self, _offset: usize, _length: usize) -> bool {
        true
    }

    /// Sees to it that there is memory at an offset, before its address is asked for. Says whether there is.
    fn provide(&mut self, _offset: usize) -> bool {
        true
    }

    /// How much is taken and given back at once, where that is not as one likes.
    fn slab_bytes(&self) -> Option<usize> {
        None
    }

    /// Gives back slabs that lie wholly behind an offset, unless in use, which is asked with the offset of their first byte.
    fn hand_back(&mut self, _from: usize, _is_used: &dyn Fn(usize) -> bool) {}

    /// How much of the first bytes has not been taken from the system, where that is known better than from what was used.
    fn untaken_bytes(&self, _length: usize) -> Option<usize> {
        None
    }

    /// A slot was written to for the first time since it was released.
    fn written(&mut self, _offset: usize, _length: usize) {}

    /// How much of the first bytes was taken from the system though no slot there was written to.
    fn taken_beside(&self, _length: usize) -> usize {
        0
    }
}
