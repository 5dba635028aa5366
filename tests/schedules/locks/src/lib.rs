//! parking_lot's locks, as far as libhypura uses them, under a scheduler that a seed decides ([`schedule`]).
//!
//! On the threads of that scheduler, only one of which runs at a time, each lock, release and wait is a point at which another one may go
//! on. On all other threads, and in statics, these are parking_lot's own locks; both kinds of threads may share them. Who waits for
//! ever uses up the steps that a run may take, which ends the test.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use real::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub mod schedule {
    //! Runs code under the scheduler.

    use std::cell::Cell;

    use shuttle::scheduler::RandomScheduler;
    use shuttle::{Config, MaxSteps, Runner};

    /// Threads that the scheduler runs, with the interface of `std::thread`.
    pub use shuttle::thread;

    /// So many steps without an end are a deadlock.
    const STEPS_MAX: usize = 2_000_000;

    const STACK_BYTES: usize = 1 << 20;

    thread_local! {
        static IS_SCHEDULED: Cell<bool> = const { Cell::new(false) };
    }

    /// Whether this code runs under the scheduler.
    pub fn is_scheduled() -> bool {
        IS_SCHEDULED.get()
    }

    /// A point at which another thread may go on.
    pub fn point() {
        if is_scheduled() && !std::thread::panicking() {
            thread::yield_now();
        }
    }

    /// Runs `body` under so many schedules. It must join the threads that it starts.
    pub fn explore(runs: usize, seed: u64, body: impl Fn() + Send + Sync + 'static) {
        struct Scheduled;
        impl Drop for Scheduled {
            fn drop(&mut self) {
                IS_SCHEDULED.set(false);
            }
        }
        let mut config = Config::new();
        config.stack_size = STACK_BYTES;
        config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
        Runner::new(RandomScheduler::new_from_seed(seed, runs), config).run(move || {
            IS_SCHEDULED.set(true);
            let _scheduled = Scheduled;
            body();
        });
    }
}

/// See `parking_lot::Mutex`.
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(real::Mutex<T>);

/// See `parking_lot::MutexGuard`.
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    /// None while it is released for a wait.
    guard: Option<real::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(real::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { mutex: self, guard: Some(self.lock_real()) }
    }

    fn lock_real(&self) -> real::MutexGuard<'_, T> {
        if !schedule::is_scheduled() || std::thread::panicking() {
            return self.0.lock();
        }
        loop {
            schedule::point();
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
        }
    }
}

impl<T: ?Sized> MutexGuard<'_, T> {
    /// Runs `body` with the lock released.
    pub fn unlocked<R>(guard: &mut Self, body: impl FnOnce() -> R) -> R {
        guard.guard = None;
        let result = body();
        guard.guard = Some(guard.mutex.lock_real());
        result
    }
}

const HELD: &str = "it is only released within `unlocked`";

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().expect(HELD)
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect(HELD)
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.guard = None;
        schedule::point();
    }
}

/// See `parking_lot::Condvar`.
#[derive(Debug, Default)]
pub struct Condvar {
    real: real::Condvar,
    /// Those under the scheduler that sleep; true wakes them.
    sleeping: real::Mutex<VecDeque<Arc<AtomicBool>>>,
}

/// See `parking_lot::WaitTimeoutResult`.
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

/// Steps after which a wait with a timeout is over.
const PATIENCE: usize = 20;

impl Condvar {
    pub const fn new() -> Self {
        Self { real: real::Condvar::new(), sleeping: real::Mutex::new(VecDeque::new()) }
    }

    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        if schedule::is_scheduled() {
            self.sleep(guard, usize::MAX);
        } else {
            self.real.wait(guard.guard.as_mut().expect(HELD));
        }
    }

    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> WaitTimeoutResult {
        self.wait_until(guard, Instant::now() + timeout)
    }

    pub fn wait_until<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Instant) -> WaitTimeoutResult {
        if schedule::is_scheduled() {
            return WaitTimeoutResult(!self.sleep(guard, PATIENCE));
        }
        WaitTimeoutResult(self.real.wait_until(guard.guard.as_mut().expect(HELD), timeout).timed_out())
    }

    /// Says whether it was woken.
    fn sleep<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, steps: usize) -> bool {
        let woken = Arc::new(AtomicBool::new(false));
        self.sleeping.lock().push_back(Arc::clone(&woken));
        MutexGuard::unlocked(guard, || {
            (0..steps).any(|_| {
                schedule::point();
                woken.load(Ordering::Relaxed)
            })
        });
        self.sleeping.lock().retain(|other| !Arc::ptr_eq(other, &woken));
        woken.load(Ordering::Relaxed)
    }

    pub fn notify_one(&self) -> bool {
        let next = self.sleeping.lock().pop_front();
        match next {
            Some(woken) => {
                woken.store(true, Ordering::Relaxed);
                true
            }
            None => self.real.notify_one(),
        }
    }

    pub fn notify_all(&self) -> usize {
        let all = std::mem::take(&mut *self.sleeping.lock());
        all.iter().for_each(|woken| woken.store(true, Ordering::Relaxed));
        all.len() + self.real.notify_all()
    }
}
