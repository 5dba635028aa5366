//! What the machine offers: memory, as the kernel and the cgroups that the process is in allow it.

mod cgroup;
mod memory;

#[cfg(test)]
mod tests;

pub use memory::{MemoryReport, memory, memory_under, page_size};
