//! Where the readers' time goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::report::Stages;

/// What a reader is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Making its stream and its first slots ready.
    Open,
    /// Reading, or waiting for reads.
    Read,
    /// Waiting for a slot: for a copy to end, or for a new one.
    Wait,
    /// Handing copies to the device, or moving bytes to their places.
    Send,
    /// Waiting for its last copies.
    Finish,
}

const STAGES: usize = 5;

/// The time of all readers together, in nanoseconds, by stage.
#[derive(Debug, Default)]
pub(super) struct Totals {
    nanoseconds: [AtomicU64; STAGES],
    readers: AtomicU64,
}

impl Totals {
    /// A watch for one reader, from now on.
    pub(super) fn watch(&self) -> Stopwatch<'_> {
        Stopwatch { totals: self, nanoseconds: [0; STAGES], last: Instant::now() }
    }

    /// The mean over all readers.
    pub(super) fn mean(&self) -> Stages {
        let readers = self.readers.load(Ordering::Relaxed).max(1);
        let mean = |stage: Stage| {
            Duration::from_nanos(self.nanoseconds[stage as usize].load(Ordering::Relaxed) / readers)
        };
        Stages {
            open: mean(Stage::Open),
            read: mean(Stage::Read),
            wait: mean(Stage::Wait),
            send: mean(Stage::Send),
            finish: mean(Stage::Finish),
        }
    }
}

/// One reader's time. Counted when it is dropped.
#[derive(Debug)]
pub(super) struct Stopwatch<'a> {
    totals: &'a Totals,
    nanoseconds: [u64; STAGES],
    last: Instant,
}

impl Stopwatch<'_> {
    /// What has passed since the last lap was this stage.
    pub(super) fn lap(&mut self, stage: Stage) {
        let now = Instant::now();
        let passed = now.duration_since(self.last).as_nanos();
        self.nanoseconds[stage as usize] += u64::try_from(passed).unwrap_or(u64::MAX);
        self.last = now;
    }
}

impl Drop for Stopwatch<'_> {
    fn drop(&mut self) {
        for (total, nanoseconds) in self.totals.nanoseconds.iter().zip(self.nanoseconds) {
            total.fetch_add(nanoseconds, Ordering::Relaxed);
        }
        self.totals.readers.fetch_add(1, Ordering::Relaxed);
    }
}
