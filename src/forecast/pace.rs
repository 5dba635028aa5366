//! How fast decoding goes, measured: what a prediction is compared with and learns from.
//!
//! A *step* is a pass of a single token, from its first demand to the first demand of the next pass, so that everything
//! is in it: the layers that are not streamed, the output, the choice of the token. Prompts are no steps. A pass is not
//! counted either when the user paused after it: then its *tail*, the time from its last demand to the next pass, is
//! longer than the rest of the step and 4 times the shortest tail and 5 ms.

use std::time::{Duration, Instant};

use crate::forecast::Measured;
use crate::stats::Counters;

/// Steps at the beginning that are not counted: caches and the ring are filling.
const SETTLING_STEPS: u64 = 8;

/// Steps in a window. The latest window that is complete and the one being filled are what counts, so that the figures
/// are those of a steady state.
const WINDOW_STEPS: u64 = 64;

/// A tail that is longer than the rest of its step and this many times the shortest tail, and a little, is a pause. On
/// a busy machine steps and tails vary together.
const PAUSE_FACTOR: u32 = 4;
const PAUSE_AT_LEAST: Duration = Duration::from_millis(5);

/// What the counters say at a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    stall: Duration,
    reading: Duration,
    read_bytes: u64,
}

impl Totals {
    fn of(counters: &Counters) -> Self {
        Self {
            stall: counters.stall_time.time(),
            reading: counters.read_time.time(),
            read_bytes: counters.read_bytes.get(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    steps: u64,
    time: Duration,
    during: Totals,
}

/// Measures steps.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// The step that is going on, if it is one: since when, and what the counters said.
    step: Option<(Instant, Totals)>,
    /// The latest demand, and the waiting time before it.
    demand: Option<(Instant, Duration)>,
    shortest_tail: Option<Duration>,
    settled_steps: u64,
    complete: Window,
    complete_count: u64,
    filling: Window,
}

impl Pace {
    /// A pass of so many tokens begins; the counters are up to date. Says whether there is something to keep: at every
    /// window that is complete, then less and less often.
    pub(crate) fn begin_pass(&mut self, now: Instant, tokens: usize, counters: &Counters) -> bool {
        let totals = Totals::of(counters);
        let step = std::mem::replace(&mut self.step, (tokens == 1).then_some((now, totals)));
        let (Some((since, before)), Some((demand, stalled))) = (step, self.demand) else { return false };
        let tail = now.saturating_duration_since(demand).saturating_sub(totals.stall.saturating_sub(stalled));
        let shortest = *self.shortest_tail.get_or_insert(tail);
        self.shortest_tail = Some(shortest.min(tail));
        let time = now.saturating_duration_since(since);
        let is_pause = tail > time.saturating_sub(tail) + shortest * PAUSE_FACTOR + PAUSE_AT_LEAST;
        self.settled_steps += 1;
        if self.settled_steps <= SETTLING_STEPS || is_pause {
            return false;
        }
        let window = &mut self.filling;
        window.steps += 1;
        window.time += time;
        window.during.stall += totals.stall.saturating_sub(before.stall);
        window.during.reading += totals.reading.saturating_sub(before.reading);
        window.during.read_bytes += totals.read_bytes.saturating_sub(before.read_bytes);
        if window.steps < WINDOW_STEPS {
            return false;
        }
        self.complete = std::mem::take(window);
        self.complete_count += 1;
        self.complete_count.is_power_of_two()
    }

    /// Something is demanded.
    pub(crate) fn demand(&mut self, now: Instant, counters: &Counters) {
        self.demand = Some((now, counters.stall_time.time()));
    }

    /// The latest steps on average; `None` before there were any.
    pub(crate) fn measured(&self) -> Option<Measured> {
        let windows = [self.complete, self.filling];
        let tokens: u64 = windows.iter().map(|window| window.steps).sum();
        let mean = |value: &dyn Fn(&Window) -> f64| windows.iter().map(value).sum::<f64>() / tokens as f64;
        (tokens > 0).then(|| Measured {
            tokens,
            seconds_per_token: mean(&|window| window.time.as_secs_f64()),
            stall_seconds: mean(&|window| window.during.stall.as_secs_f64()),
            drive_seconds: mean(&|window| window.during.reading.as_secs_f64()),
            read_bytes: mean(&|window| window.during.read_bytes as f64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Plays passes: tokens, and how long after the last demand the next pass begins. From begin to last demand it is
    /// always 20 ms, of which 10 are waiting, and 1000 bytes are read in 15 ms.
    fn play(passes: impl Iterator<Item = (usize, Duration)>) -> (Pace, usize) {
        let (mut pace, counters, mut now, mut windows) = (Pace::default(), Counters::default(), Instant::now(), 0);
        for (tokens, tail) in passes {
            windows += usize::from(pace.begin_pass(now, tokens, &counters));
            pace.demand(now, &counters);
            counters.stall_time.add_time(ms(10));
            counters.read_time.add_time(ms(15));
            counters.read_bytes.add(1000);
            now += ms(20);
            pace.demand(now, &counters);
            now += tail;
        }
        (pace, windows)
    }

    #[test]
    fn prompts_and_pauses_are_left_out() {
        let passes = (0..).map(|pass| match pass % 20 {
            0 => (100, ms(3000)),
            7 | 19 => (1, ms(2000)),
            _ => (1, ms(5)),
        });
        let (pace, _) = play(passes.take(1000));
        let measured = pace.measured().unwrap();
        assert!((measured.seconds_per_token - 0.025).abs() < 1e-9, "{measured:?}");
        assert!((measured.stall_seconds - 0.010).abs() < 1e-9, "{measured:?}");
        assert!((measured.drive_seconds - 0.015).abs() < 1e-9, "{measured:?}");
        assert!((measured.read_bytes - 1000.0).abs() < 1e-6, "{measured:?}");
    }

    #[test]
    fn the_latest_steps_are_what_counts() {
        let count = 10 * WINDOW_STEPS;
        let (pace, windows) = play((0..count).map(|pass| (1, if pass < count / 2 { ms(15) } else { ms(5) })));
        let measured = pace.measured().unwrap();
        assert!((measured.seconds_per_token - 0.025).abs() < 1e-9, "{measured:?}");
        assert!((WINDOW_STEPS..2 * WINDOW_STEPS).contains(&measured.tokens), "{measured:?}");
        // After 1, 2, 4 and 8 of the 9 windows.
        assert_eq!(windows, 4);
    }

    #[test]
    fn the_first_steps_and_prompts_alone_tell_nothing() {
        assert_eq!(play((0..=SETTLING_STEPS).map(|_| (1, ms(5)))).0.measured(), None);
        assert_eq!(play((0..100).map(|_| (8, ms(5)))).0.measured(), None);
        assert_eq!(play((0..SETTLING_STEPS + 2).map(|_| (1, ms(5)))).0.measured().unwrap().tokens, 1);
    }

    #[test]
    fn waiting_for_the_last_tensor_is_no_pause() {
        let (mut pace, counters, mut now) = (Pace::default(), Counters::default(), Instant::now());
        for _ in 0..50 {
            pace.begin_pass(now, 1, &counters);
            pace.demand(now, &counters);
            // Of a second after the last demand, all but a millisecond is waiting for the drive.
            counters.stall_time.add_time(ms(999));
            now += ms(1000);
        }
        assert_eq!(pace.measured().unwrap().tokens, 49 - SETTLING_STEPS);
    }
}
