//! Whether the host's own memory is what leaves too little for weights: worth a line, since it can be told to take less.

/// Compares what weights and the rest of the process have with the time when weights had most.
#[derive(Debug, Default)]
pub struct Crowding {
    /// The most that weights have had.
    most_bytes: u64,
    /// What the rest of the process held then.
    rest_bytes: u64,
    is_told: bool,
}

/// What has come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowded {
    /// What weights have now, and had at most.
    pub weights_bytes: u64,
    pub weights_most_bytes: u64,
    /// What the rest of the process has taken since.
    pub taken_bytes: u64,
}

/// Less than one part in so many of what weights have had is little.
const LITTLE: u64 = 2;

impl Crowding {
    /// Takes what weights have now; `rest_bytes` tells what the rest of the process holds. Answers once: when weights have
    /// lost half, and at least half of what they have lost went to the rest of the process.
    pub fn look(&mut self, weights_bytes: u64, rest_bytes: impl FnOnce() -> u64) -> Option<Crowded> {
        if weights_bytes > self.most_bytes {
            (self.most_bytes, self.rest_bytes) = (weights_bytes, rest_bytes());
            return None;
        }
        if self.is_told || weights_bytes > self.most_bytes / LITTLE {
            return None;
        }
        let taken_bytes = rest_bytes().saturating_sub(self.rest_bytes);
        self.is_told = taken_bytes >= (self.most_bytes - weights_bytes) / 2;
        self.is_told.then_some(Crowded { weights_bytes, weights_most_bytes: self.most_bytes, taken_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_that_the_host_has_taken_what_weights_had() {
        let mut crowding = Crowding::default();
        assert_eq!(crowding.look(800, || 100), None);
        assert_eq!(crowding.look(1000, || 120), None);
        assert_eq!(crowding.look(501, || unreachable!()), None, "more than half is left");
        assert_eq!(crowding.look(400, || 419), None, "others have taken most of it");
        let crowded = Crowded { weights_bytes: 400, weights_most_bytes: 1000, taken_bytes: 300 };
        assert_eq!(crowding.look(400, || 420), Some(crowded));
        assert_eq!(crowding.look(100, || 900), None);
    }
}
