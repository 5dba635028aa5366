//! How fast this machine multiplies with weights of each type, as the host measured it with its own kernels: with few cores,
//! unpacking takes longer than reading memory does, and types differ by a factor of three.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::persist::Store;

/// Bytes per second by number of threads and ggml type, kept between runs.
#[derive(Debug)]
pub struct Kernels {
    store: Store,
    machine: String,
    /// Numbers of threads whose kept speeds were looked up.
    looked_up: BTreeSet<usize>,
    /// The number of threads that was asked about last.
    threads: usize,
    speeds: BTreeMap<(usize, u32), f64>,
}

const FILE: &str = "kernels.json";

/// Of the available memory, a measurement takes no more than one part in so many.
const SHARE: u64 = 4;

impl Kernels {
    /// What is known of a machine, named as for [`super::memory_bandwidth`].
    pub fn kept_in(store: Store, machine: String) -> Self {
        Self { store, machine, looked_up: BTreeSet::new(), threads: 0, speeds: BTreeMap::new() }
    }

    /// The first of some types whose speed with so many threads is not known. `None` as well when the measurement, which needs
    /// `needed_bytes` of memory, would take too much of what is available.
    pub fn next_unmeasured(
        &mut self,
        types: &[u32],
        threads: usize,
        needed_bytes: u64,
        available_bytes: u64,
    ) -> Option<u32> {
        self.look_up(threads);
        let affordable = needed_bytes.saturating_mul(SHARE) <= available_bytes;
        types.iter().copied().find(|&kind| !self.speeds.contains_key(&(threads, kind))).filter(|_| affordable)
    }

    /// Notes a type's bytes per second. What makes no sense counts as measured in this run, and is not kept.
    pub fn set(&mut self, kind: u32, threads: usize, bytes_per_second: f64) {
        self.look_up(threads);
        self.speeds.insert((threads, kind), bytes_per_second);
        if !is_sane(bytes_per_second) {
            return;
        }
        self.store.change(FILE, |stored| {
            let entry = stored.entry(self.key(threads)).or_insert_with(|| json!({}));
            if !entry.is_object() {
                *entry = json!({});
            }
            entry[kind.to_string()] = json!(bytes_per_second);
        });
    }

    /// The speeds that are known for the number of threads that was asked about last.
    pub fn speeds(&self) -> BTreeMap<u32, f64> {
        let of_threads = self.speeds.range((self.threads, 0)..=(self.threads, u32::MAX));
        of_threads.filter(|(_, speed)| is_sane(**speed)).map(|((_, kind), speed)| (*kind, *speed)).collect()
    }

    /// Looks up what is kept for this number of threads.
    fn look_up(&mut self, threads: usize) {
        self.threads = threads;
        if !self.looked_up.insert(threads) {
            return;
        }
        let stored = self.store.facts(FILE);
        let entry = stored.get(&self.key(threads)).and_then(Value::as_object);
        let parse = |(kind, speed): (&String, &Value)| Some(((threads, kind.parse().ok()?), speed.as_f64()?));
        self.speeds.extend(entry.into_iter().flatten().filter_map(parse).filter(|(_, speed)| is_sane(*speed)));
    }

    fn key(&self, threads: usize) -> String {
        format!("{}, {threads} threads", self.machine)
    }
}

fn is_sane(bytes_per_second: f64) -> bool {
    (1e7..1e14).contains(&bytes_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;

    #[test]
    fn every_type_is_measured_once_per_machine_and_number_of_threads() {
        let directory = TestDirectory::new();
        let new = |machine: &str| Kernels::kept_in(Store::at(directory.path()), machine.to_owned());
        let mut kernels = new("a");
        assert_eq!(kernels.next_unmeasured(&[8, 12], 2, 100, 400), Some(8));
        assert_eq!(kernels.next_unmeasured(&[8, 12], 2, 100, 399), None, "memory is short");
        kernels.set(8, 2, 5e9);
        assert_eq!(kernels.next_unmeasured(&[8, 12], 2, 0, 0), Some(12));
        kernels.set(12, 2, 4e9);
        assert_eq!(kernels.next_unmeasured(&[8, 12], 2, 0, 0), None);
        assert_eq!(kernels.next_unmeasured(&[8, 12], 4, 0, 0), Some(8));
        assert_eq!(kernels.speeds(), BTreeMap::new());
        kernels.set(8, 4, 9e9);
        assert_eq!(kernels.next_unmeasured(&[8, 12], 2, 0, 0), None);
        assert_eq!(kernels.speeds(), BTreeMap::from([(8, 5e9), (12, 4e9)]));

        let mut again = new("a");
        assert_eq!(again.next_unmeasured(&[8, 12], 2, 0, 0), None);
        assert_eq!(again.speeds(), BTreeMap::from([(8, 5e9), (12, 4e9)]));
        assert_eq!(new("b").next_unmeasured(&[8, 12], 2, 0, 0), Some(8));
    }

    #[test]
    fn what_makes_no_sense_is_not_asked_again_nor_used_nor_kept() {
        let directory = TestDirectory::new();
        let new = || Kernels::kept_in(Store::at(directory.path()), "a".to_owned());
        for speed in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let mut kernels = new();
            kernels.set(8, 2, speed);
            assert_eq!(kernels.next_unmeasured(&[8], 2, 0, 0), None);
            assert_eq!(kernels.speeds(), BTreeMap::new());
            assert_eq!(new().next_unmeasured(&[8], 2, 0, 0), Some(8));
        }
        for rubbish in ["{", "[]", r#"{"a, 2 threads": 7}"#, r#"{"a, 2 threads": {"8": "x", "y": 1e9, "12": -1}}"#] {
            directory.write(FILE, rubbish);
            assert_eq!(new().next_unmeasured(&[8], 2, 0, 0), Some(8), "{rubbish}");
            new().set(8, 2, 5e9);
            assert_eq!(new().next_unmeasured(&[8], 2, 0, 0), None, "{rubbish}");
        }
    }
}
