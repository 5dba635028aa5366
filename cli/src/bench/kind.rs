//! What is compared.

/// A kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Stock llama.cpp under the memory limit: weights come by page faults.
    Mmap,
    /// Streamed by libhypura under the same limit.
    Streamed,
    /// Stock llama.cpp with everything in memory and no limit.
    Resident,
}

impl Kind {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Mmap => "llama.cpp, mmap",
            Self::Streamed => "llama.cpp with libhypura",
            Self::Resident => "llama.cpp, all in memory",
        }
    }

    /// For programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mmap => "mmap",
            Self::Streamed => "streamed",
            Self::Resident => "resident",
        }
    }
}
