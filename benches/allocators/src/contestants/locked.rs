//! Any contestant behind one lock, taken for each call.

use std::sync::{Mutex, MutexGuard};

use super::{Contestant, Shared};

pub(crate) struct Locked<C>(Mutex<C>);

impl<C> Locked<C> {
    #[inline]
    fn lock(&self) -> MutexGuard<'_, C> {
        self.0.lock().expect("no one panics with the lock")
    }
}

impl<C: Contestant<Live: Send> + Send> Shared for Locked<C> {
    type Live = C::Live;

    fn name() -> String {
        format!("{}, mutex", C::name())
    }

    fn new(capacity: u64) -> Result<Self, String> {
        Ok(Self(Mutex::new(C::new(capacity)?)))
    }

    #[inline]
    fn allocate(&self, size: u64) -> Option<(u64, C::Live)> {
        self.lock().allocate(size)
    }

    #[inline]
    fn free(&self, live: C::Live) {
        self.lock().free(live);
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}
