//! [`StageTimer`]: the time that readers spend in each stage.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::report::Stages;

/// A stage of a reader's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Making the stream and the first slots.
    Open,
    /// Reading, or waiting for reads.
    Read,
    /// Waiting for a slot: for the end of a copy, or for a new slot.
    Wait,
    /// Submitting copies, or moving bytes to their places.
    Send,
    /// Waiting for the last copies.
    Finish,
}

const STAGES: usize = 5;

/// The time of all readers, in nanoseconds, by stage.
#[derive(Debug, Default)]
pub(crate) struct StageTotals {
    nanoseconds: [AtomicU64; STAGES],
    readers: AtomicU64,
}

impl StageTotals {
    /// A timer for one reader, which starts now.
    pub(crate) fn timer(&self) -> StageTimer<'_> {
        StageTimer { totals: self, nanoseconds: [0; STAGES], last: Instant::now() }
    }

    /// The mean over all readers.
    pub(crate) fn mean(&self) -> Stages {
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

/// The time of one reader. Added to the totals on drop.
#[derive(Debug)]
pub(crate) struct StageTimer<'a> {
    totals: &'a StageTotals,
    nanoseconds: [u64; STAGES],
    last: Instant,
}

impl StageTimer<'_> {
    /// Counts the time since the last lap as this stage.
    pub(crate) fn lap(&mut self, stage: Stage) {
        let now = Instant::now();
        let passed = now.duration_since(self.last).as_nanos();
        self.nanoseconds[stage as usize] += u64::try_from(passed).unwrap_or(u64::MAX);
        self.last = now;
    }
}

impl Drop for StageTimer<'_> {
    fn drop(&mut self) {
        for (total, nanoseconds) in self.totals.nanoseconds.iter().zip(self.nanoseconds) {
            total.fetch_add(nanoseconds, Ordering::Relaxed);
        }
        self.totals.readers.fetch_add(1, Ordering::Relaxed);
    }
}
