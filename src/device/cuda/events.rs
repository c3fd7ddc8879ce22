//! Events that are kept for whoever needs one next: making one is a call of the driver.

use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::CUevent;

/// Events of a context that are not recorded by anyone, for whoever needs one next.
#[derive(Debug, Default)]
pub(super) struct Events(Mutex<Vec<EventHandle>>);

#[derive(Debug)]
struct EventHandle(CUevent);

// SAFETY: the driver API may be called with the handle from any thread.
unsafe impl Send for EventHandle {}

/// More events than this are destroyed when they are done with.
const KEPT_EVENTS: usize = 1024;

impl Events {
    /// One of them.
    pub(super) fn take(&self) -> Option<CUevent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().map(|event| event.0)
    }

    /// Keeps an event; gives it back where there are enough.
    pub(super) fn keep(&self, event: CUevent) -> Option<CUevent> {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() >= KEPT_EVENTS {
            return Some(event);
        }
        events.push(EventHandle(event));
        None
    }
}
