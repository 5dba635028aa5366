//! When the memory for streamed weights should become smaller or larger, from what the system tells now and then.
//!
//! Room is left beside the weights so that others may suddenly take memory without anyone being killed; this brings
//! that room back: at once when much of it is gone, slowly when there is more of it than needed.

use std::time::Duration;

use crate::hw::{MemoryEvents, MemoryPressure};

/// What is known at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Bytes that may be used, less those that are promised to somebody.
    pub free_bytes: u64,
    /// Bytes that should be free.
    pub margin_bytes: u64,
    /// How often limits were met so far.
    pub events: Option<MemoryEvents>,
    /// How much tasks wait for memory.
    pub pressure: Option<MemoryPressure>,
}

/// What to do with the memory for streamed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Keep,
    /// Give back so many bytes.
    Shrink(u64),
    /// Take so many bytes more.
    Grow(u64),
}

/// Remembers what a change depends on besides the moment.
#[derive(Debug, Default)]
pub struct Control {
    events: Option<MemoryEvents>,
    /// For how long there has been more room than needed.
    calm: Duration,
}

/// How long memory must stay above the margin, after it was short or room was asked for, before pools grow again.
const CALM: Duration = Duration::from_secs(5);

/// From one step of growth to the next.
const PACE: Duration = Duration::from_secs(1);

/// The share of tasks' time lost to waiting for memory that means trouble.
const PRESSURE: f64 = 0.1;

impl Control {
    /// Judges a moment, `elapsed` after the one before it.
    pub fn step(&mut self, reading: &Reading, elapsed: Duration) -> Change {
        let Reading { free_bytes: free, margin_bytes: margin, events, pressure } = *reading;
        let before = std::mem::replace(&mut self.events, events);
        // Reading files through the page cache meets a limit all the time: it means something only where room is scarce
        // too.
        let trouble = matches!((before, events), (Some(before), Some(now)) if now != before)
            || pressure.is_some_and(|pressure| pressure.some > PRESSURE);
        if free < margin / 4 * 3 || (free < margin && trouble) {
            self.hold();
            return Change::Shrink(margin - free);
        }
        if free < margin + margin / 4 {
            self.calm = self.calm.min(CALM - PACE);
            return Change::Keep;
        }
        self.calm += elapsed;
        if self.calm < CALM {
            return Change::Keep;
        }
        self.calm = CALM - PACE;
        Change::Grow((free - margin) / 2)
    }

    /// Somebody will take memory soon: nothing grows for a while.
    pub fn hold(&mut self) {
        self.calm = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(500);

    fn reading(free_bytes: u64) -> Reading {
        Reading { free_bytes, margin_bytes: 100, events: None, pressure: None }
    }

    #[test]
    fn it_shrinks_at_once_by_what_is_missing() {
        let mut control = Control::default();
        assert_eq!(control.step(&reading(100), TICK), Change::Keep);
        assert_eq!(control.step(&reading(75), TICK), Change::Keep, "what fluctuates is let be");
        assert_eq!(control.step(&reading(74), TICK), Change::Shrink(26));
        assert_eq!(control.step(&reading(0), TICK), Change::Shrink(100));
    }

    #[test]
    fn signs_of_trouble_count_only_where_room_is_scarce() {
        let mut control = Control::default();
        let met = |limit_met| Some(MemoryEvents { limit_met, ..MemoryEvents::default() });
        assert_eq!(
            control.step(&Reading { events: met(7), ..reading(80) }, TICK),
            Change::Keep,
            "nothing to compare with"
        );
        assert_eq!(control.step(&Reading { events: met(7), ..reading(80) }, TICK), Change::Keep);
        assert_eq!(control.step(&Reading { events: met(8), ..reading(80) }, TICK), Change::Shrink(20));
        assert_eq!(control.step(&Reading { events: met(9), ..reading(100) }, TICK), Change::Keep);
        let pressure = Some(MemoryPressure { some: 0.2, full: 0.0 });
        assert_eq!(control.step(&Reading { pressure, ..reading(80) }, TICK), Change::Shrink(20));
        assert_eq!(control.step(&Reading { pressure, ..reading(120) }, TICK), Change::Keep);
    }

    /// The steps until it grows.
    fn steps_until_growth(control: &mut Control, free_bytes: u64) -> usize {
        (1..100).find(|_| matches!(control.step(&reading(free_bytes), TICK), Change::Grow(_))).expect("it grows")
    }

    #[test]
    fn it_grows_after_a_while_and_in_steps() {
        let mut control = Control::default();
        assert_eq!(control.step(&reading(10), TICK), Change::Shrink(90));
        assert_eq!(steps_until_growth(&mut control, 300), 10, "5 s of calm");
        assert_eq!(steps_until_growth(&mut control, 300), 2, "then every second");
        let steps = steps_until_growth(&mut control, 300);
        assert_eq!(steps, 2);
        control.hold();
        assert_eq!(steps_until_growth(&mut control, 300), 10);
        assert_eq!(control.step(&reading(300), TICK), Change::Keep);
        assert_eq!(control.step(&reading(300), TICK), Change::Grow(100));
        assert!((0..50).all(|_| control.step(&reading(124), TICK) == Change::Keep));
    }
}
