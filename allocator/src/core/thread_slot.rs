//! Which thread this is, and which shard it places in.

use std::cell::Cell;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{global, per_thread};

global! {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
}

per_thread! {
    static SEAT: Cell<Seat> = Cell::new(Seat { thread: 0, place: 0 });
}

/// A thread's number, which no other has, and its place among the shards, of any pool. Threads begin side by side; one that
/// meets another in a shard moves on, so that they spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    /// From 1 on.
    pub(crate) thread: usize,
    pub(crate) place: usize,
}

impl Seat {
    /// This thread's.
    #[inline]
    pub(crate) fn current() -> Self {
        let seat = SEAT.with(Cell::get);
        if seat.thread > 0 { seat } else { Self::first() }
    }

    #[cold]
    fn first() -> Self {
        let before = THREADS.fetch_add(1, Ordering::Relaxed);
        let seat = Self { thread: before + 1, place: before };
        SEAT.with(|cell| cell.set(seat));
        seat
    }

    /// Moves this thread to the next place.
    pub(crate) fn move_on(self) -> Self {
        let seat = Self { place: self.place.wrapping_add(1), ..self };
        SEAT.with(|cell| cell.set(seat));
        seat
    }
}

/// How crowded the place is where all place: whether threads wait for each other there.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    /// The thread that placed last.
    placer: usize,
    score: u32,
}

/// What a meeting counts, where a placement without one counts 1 off.
const MEETING: u32 = 16;

/// The score at which it is crowded.
const CROWDED: u32 = 32 * MEETING;

impl Crowd {
    /// A thread places, after it `waited` for its turn. Whether it is crowded. Waiting for the reaper is no meeting of threads that
    /// place.
    #[inline]
    pub(crate) fn place(&mut self, thread: usize, waited: bool) -> bool {
        if waited && self.placer != thread {
            self.score = CROWDED.min(self.score + MEETING);
        } else {
            self.score = self.score.saturating_sub(1);
        }
        self.placer = thread;
        self.score >= CROWDED
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_is_crowded_where_threads_meet_again_and_again() {
        let mut crowd = Crowd::default();
        let mut meetings = 0;
        while !crowd.place(meetings % 2 + 1, true) {
            meetings += 1;
        }
        assert_eq!(meetings, (CROWDED / MEETING) as usize - 1);
    }

    #[test]
    fn one_thread_is_no_crowd_however_long_it_waits() {
        let mut crowd = Crowd::default();
        // Its first turn may come after another's.
        assert!(!crowd.place(7, true));
        assert!((0..10_000).all(|_| !crowd.place(1, true)));
    }

    /// Where there can be no shards, threads may meet for as long as they like.
    #[test]
    fn a_crowd_is_soon_forgotten_however_long_it_lasted() {
        let mut crowd = Crowd::default();
        (0..100_000).for_each(|turn| _ = crowd.place(turn % 2 + 1, true));
        assert!(crowd.place(1, true));
        assert!(!crowd.place(1, false));
    }

    #[test]
    fn threads_that_meet_now_and_then_are_no_crowd() {
        let mut crowd = Crowd::default();
        assert!((0..100_000).all(|turn| !crowd.place(turn % 2 + 1, turn % 20 == 0)));
    }

    #[test]
    fn a_thread_has_one_number_and_moves_from_place_to_place() {
        let seat = Seat::current();
        assert_eq!(Seat::current(), seat);
        seat.move_on();
        assert_eq!(Seat::current(), Seat { place: seat.place + 1, ..seat });
        let other = std::thread::spawn(Seat::current).join().ok();
        assert!(other.is_some_and(|other| other.thread != seat.thread));
    }
}
