//! All policies on a trace, at several sizes of the cache.

use super::belady::Belady;
use super::simulate::simulate;
use super::trace::Trace;
use crate::cache::policy::PolicyKind;

/// The share of all experts that is cached, in percent.
pub const SHARES: [usize; 9] = [5, 10, 15, 20, 25, 30, 40, 50, 75];

/// A policy's hit rates.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The policy.
    pub name: &'static str,
    /// Hits in percent, for each of [`SHARES`].
    pub hit_percents: [f64; SHARES.len()],
}

/// Every policy's hit rates on a trace, Belady's last.
pub fn compare(trace: &Trace) -> Vec<Row> {
    let slots = SHARES.map(|share| (trace.shape.unit_count() * share / 100).max(1));
    let row = |name, make: &dyn Fn() -> Box<dyn crate::cache::policy::Policy>| Row {
        name,
        hit_percents: slots.map(|slots| simulate(trace, slots, &mut *make()).hit_percent()),
    };
    let mut rows: Vec<Row> =
        PolicyKind::ALL.iter().map(|kind| row(kind.build(trace.shape).name(), &|| kind.build(trace.shape))).collect();
    rows.push(row("Belady", &|| Box::new(Belady::new(trace))));
    rows
}
