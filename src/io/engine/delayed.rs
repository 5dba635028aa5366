//! `HYPURA_TEST_DELAY=SEED`: lets reads arrive late and out of step, as a loaded drive does. For tests of whole
//! programs.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Sink;
use crate::error::{Error, Result};
use crate::index::ReadToken;

/// The longest delay of a read.
const DELAY_MAX: Duration = Duration::from_millis(2);

/// Holds reports back at random before it passes them on.
struct Delaying {
    sink: Arc<dyn Sink>,
    /// The state of a generator (xorshift64).
    random: Mutex<u64>,
}

/// The sink itself, unless a test asks for delays.
pub(super) fn for_tests(sink: Arc<dyn Sink>) -> Arc<dyn Sink> {
    let seed = std::env::var("HYPURA_TEST_DELAY").ok().and_then(|seed| seed.parse::<u64>().ok());
    match seed {
        Some(seed) => Arc::new(Delaying { sink, random: Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1) }),
        None => sink,
    }
}

impl Delaying {
    fn delay(&self) -> Option<Duration> {
        let mut random = self.random.lock();
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        // Most reads arrive as they are, so that their order changes.
        (*random % 4 == 0).then(|| DELAY_MAX.mul_f64((*random >> 32) as f64 / f64::from(u32::MAX)))
    }
}

impl Sink for Delaying {
    fn finished(&self, token: ReadToken, outcome: Result<()>) {
        if let Some(delay) = self.delay() {
            std::thread::sleep(delay);
        }
        self.sink.finished(token, outcome);
    }

    fn broken(&self, error: Error) {
        self.sink.broken(error);
    }
}
