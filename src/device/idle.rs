//! Streams that are kept for the next copy, since making and destroying one takes longer than a small copy.
//!
//! Each slot is its own lock, held to move a pointer and never waited for: a slot in someone's hands is passed over. So
//! copies at once do not wait for one another. A forked child has no use for the streams of its parent: it neither takes nor drops them.

use std::fmt;
use std::sync::Mutex;

use super::Stream;
use crate::fork::OfProcess;

/// How many are kept; where more threads copy at once, the others make and drop theirs.
const KEPT: usize = 16;

/// Streams on which nothing is enqueued, and which no one else can use.
#[derive(Default)]
pub(super) struct IdleStreams {
    slots: [Slot; KEPT],
}

type Slot = Mutex<Option<OfProcess<Box<dyn Stream>>>>;

impl IdleStreams {
    /// One of them, if one is at hand.
    pub(super) fn take(&self) -> Option<Box<dyn Stream>> {
        self.slots.iter().find_map(|slot| slot.try_lock().ok()?.take()?.into_inner())
    }

    /// Keeps a stream, or drops it where there is no room.
    pub(super) fn put(&self, stream: Box<dyn Stream>) {
        for slot in &self.slots {
            if let Ok(mut slot) = slot.try_lock()
                && slot.is_none()
            {
                *slot = Some(OfProcess::new(stream));
                return;
            }
        }
    }
}

impl fmt::Debug for IdleStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdleStreams").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::device::host::HostStream;
    use crate::error::Result;
    use crate::test_support::fork::in_child;

    fn taken(idle: &IdleStreams) -> usize {
        std::iter::from_fn(|| idle.take()).count()
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let idle = IdleStreams::default();
        assert_eq!(taken(&idle), 0);
        for _ in 0..KEPT + 3 {
            idle.put(Box::new(HostStream));
        }
        assert_eq!(taken(&idle), KEPT);
        assert_eq!(taken(&idle), 0);
    }

    #[test]
    fn a_forked_child_neither_takes_nor_drops_the_streams_of_its_parent() {
        let mut idle = Some(IdleStreams::default());
        let dropped = Arc::new(AtomicUsize::new(0));
        let of_parent = idle.as_ref().unwrap();
        of_parent.put(Box::new(Counted(Arc::clone(&dropped))));
        of_parent.put(Box::new(Counted(Arc::clone(&dropped))));
        in_child(|| {
            let idle = idle.take().unwrap();
            assert!(idle.take().is_none());
            idle.put(Box::new(HostStream));
            assert_eq!(taken(&idle), 1, "its own");
            drop(idle);
            assert_eq!(dropped.load(Ordering::Relaxed), 0);
        });
        drop(idle);
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    }

    /// Counts its drops, and does nothing else.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    // SAFETY: T1 to T3: it does no work.
    unsafe impl Stream for Counted {
        unsafe fn copy_to_device(&self, _: *mut u8, _: *const u8, _: u64) -> Result<()> {
            unreachable!()
        }

        unsafe fn copy_to_host(&self, _: *mut u8, _: *const u8, _: u64) -> Result<()> {
            unreachable!()
        }

        fn record(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn wait(&self, _: usize) -> Result<()> {
            Ok(())
        }

        fn has_passed(&self, _: usize) -> Result<bool> {
            Ok(true)
        }

        fn synchronize(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn slots_in_the_hands_of_others_are_not_waited_for() {
        let idle = IdleStreams::default();
        let (first, others) = idle.slots.split_first().unwrap();
        let held = first.lock().unwrap();
        idle.put(Box::new(HostStream));
        assert_eq!(taken(&idle), 1);
        idle.put(Box::new(HostStream));
        let all_held: Vec<_> = others.iter().map(|slot| slot.lock().unwrap()).collect();
        assert!(idle.take().is_none());
        idle.put(Box::new(HostStream));
        drop((held, all_held));
        assert_eq!(taken(&idle), 1, "what found no slot was dropped");
    }
}
