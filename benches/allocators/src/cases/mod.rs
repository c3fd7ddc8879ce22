//! What is measured.

pub(crate) mod batch;
pub(crate) mod churn;
pub(crate) mod threads;

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How often a batch is placed in a round.
const REPETITIONS: usize = 1000;

/// What a reading of the clock costs, in nanoseconds.
fn clock() -> f64 {
    median((0..10_000).map(|_| black_box(Instant::now()).elapsed().as_nanos() as f64).collect())
}

/// The median time of many repetitions in nanoseconds, less the clock's own. The first is not counted.
pub(crate) fn median_of_times(mut once: impl FnMut() -> Result<Duration, String>) -> Result<f64, String> {
    let clock = clock();
    once()?;
    let times: Result<Vec<f64>, String> =
        (0..REPETITIONS).map(|_| once().map(|time| time.as_nanos() as f64)).collect();
    Ok((median(times?) - clock).max(0.0))
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
