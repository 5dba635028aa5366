//! Whether acting on predictions pays, found out by doing it now and then not.
//!
//! Reads that turn out useless cost time on a busy drive, and no recall figure tells how much. So passes are divided
//! into windows that act and windows that do not, and what decides is the time that computing waited in each. Which
//! wins is asked again from time to time, since text and load change.

use std::time::Duration;

/// Passes in a window.
const WINDOW: u32 = 8;
/// Windows of each kind in a trial.
const ROUNDS: u32 = 3;
/// Windows that a decision holds.
const HOLD: u32 = 40;

/// Decides from the waiting times of passes.
#[derive(Debug)]
pub struct Trial {
    /// Set when there is nothing to find out.
    forced: bool,
    acting: bool,
    passes_left: u32,
    /// Windows of the trial or of the decision's term that are left after this one.
    windows_left: u32,
    deciding: bool,
    /// Waiting per pass in the trial, not acting and acting.
    waited: [Duration; 2],
    verdict: Option<bool>,
}

impl Trial {
    /// Begins by acting. `forced`: acts always.
    pub fn new(forced: bool) -> Self {
        Self {
            forced,
            acting: true,
            passes_left: WINDOW,
            windows_left: 2 * ROUNDS - 1,
            deciding: true,
            waited: [Duration::ZERO; 2],
            verdict: None,
        }
    }

    /// Whether to act on predictions now.
    pub fn is_acting(&self) -> bool {
        self.forced || self.acting
    }

    /// The latest decision, if there was one.
    pub fn verdict(&self) -> Option<bool> {
        self.verdict
    }

    /// A pass of one token is over, in which computing waited this long.
    pub fn pass(&mut self, waited: Duration) {
        if self.deciding {
            self.waited[usize::from(self.acting)] += waited;
        }
        self.passes_left -= 1;
        if self.passes_left > 0 {
            return;
        }
        self.passes_left = WINDOW;
        if self.windows_left > 0 {
            self.windows_left -= 1;
            // Alternating, so that whatever changes slowly falls on both alike.
            self.acting = if self.deciding { !self.acting } else { self.acting };
        } else if self.deciding {
            let [without, with] = self.waited;
            self.acting = with <= without;
            self.verdict = Some(self.acting);
            self.deciding = false;
            self.windows_left = HOLD - 1;
        } else {
            *self = Self { verdict: self.verdict, ..Self::new(self.forced) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(trial: &mut Trial, passes: u32, wait: impl Fn(bool) -> u64) -> u32 {
        (0..passes)
            .filter(|_| {
                let acting = trial.is_acting();
                trial.pass(Duration::from_millis(wait(acting)));
                acting
            })
            .count() as u32
    }

    #[test]
    fn what_waits_less_wins_and_is_asked_again() {
        for pays in [true, false] {
            let mut trial = Trial::new(false);
            let wait = |acting: bool| if acting == pays { 10 } else { 12 };
            let term = WINDOW * HOLD;
            assert_eq!(run(&mut trial, 2 * ROUNDS * WINDOW, wait), ROUNDS * WINDOW);
            assert_eq!(trial.verdict(), Some(pays));
            assert_eq!(run(&mut trial, term, wait), if pays { term } else { 0 });
            // The world has changed: the next trial notices.
            run(&mut trial, 2 * ROUNDS * WINDOW, |acting| wait(!acting));
            assert_eq!(trial.verdict(), Some(!pays));
        }
    }

    #[test]
    fn forced_it_always_acts() {
        let mut trial = Trial::new(true);
        assert_eq!(run(&mut trial, 1000, |acting| u64::from(acting) * 100), 1000);
    }
}
