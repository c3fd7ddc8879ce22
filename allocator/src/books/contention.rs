//! [`Contention`]: whether the lock of the books is contended enough for shards.

/// Estimates lock contention: how often placements of different threads wait for each other.
#[derive(Debug, Default)]
pub(crate) struct Contention {
    /// The thread that placed last.
    last_thread: usize,
    score: u32,
}

/// Added to the score by each contended placement; an uncontended one subtracts 1.
const CONTENDED: u32 = 16;

/// The score from which the lock counts as contended.
const THRESHOLD: u32 = 32 * CONTENDED;

impl Contention {
    /// Enters a placement by a thread that `waited` for the lock or did not, and returns whether the lock is contended. A thread
    /// that placed last itself can only have waited for the reaper, which does not count.
    #[inline]
    pub(crate) fn record(&mut self, thread: usize, waited: bool) -> bool {
        if waited && self.last_thread != thread {
            self.score = THRESHOLD.min(self.score + CONTENDED);
        } else {
            self.score = self.score.saturating_sub(1);
        }
        self.last_thread = thread;
        self.score >= THRESHOLD
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_lock_for_which_threads_wait_again_and_again_is_contended() {
        let mut contention = Contention::default();
        let mut waits = 0;
        while !contention.record(waits % 2 + 1, true) {
            waits += 1;
        }
        assert_eq!(waits, (THRESHOLD / CONTENDED) as usize - 1);
    }

    #[test]
    fn one_thread_is_no_contention_however_long_it_waits() {
        let mut contention = Contention::default();
        // Another thread may have placed before its first placement.
        assert!(!contention.record(7, true));
        assert!((0..10_000).all(|_| !contention.record(1, true)));
    }

    /// Where shards cannot help, contention may last.
    #[test]
    fn contention_is_soon_forgotten_however_long_it_lasted() {
        let mut contention = Contention::default();
        (0..100_000).for_each(|turn| _ = contention.record(turn % 2 + 1, true));
        assert!(contention.record(1, true));
        assert!(!contention.record(1, false));
    }

    #[test]
    fn threads_that_wait_now_and_then_are_no_contention() {
        let mut contention = Contention::default();
        assert!((0..100_000).all(|turn| !contention.record(turn % 2 + 1, turn % 20 == 0)));
    }
}
