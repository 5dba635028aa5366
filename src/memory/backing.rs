//! What a pool of slots lies in.

/// Memory for slots: one stretch of addresses that stays where it is. Ordinary memory ([`super::Arena`]) is one; memory that is pinned
/// for a GPU, or mapped from one, is another. Reads write to it, so every address must be one that `pread` may be given.
pub trait Backing: std::fmt::Debug + Send {
    /// Bytes.
    fn length(&self) -> usize;

    /// The address `offset` bytes in, which is less than the length. It stays the same and valid until this is dropped.
    fn address(&self, offset: usize) -> *mut u8;

    /// Nothing in this range is needed any more: what can be given back to the system is. Its contents are undefined afterwards; its
    /// addresses stay valid, and writing to them takes the memory again.
    fn release(&mut self, offset: usize, length: usize);
}
