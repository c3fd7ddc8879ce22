//! [`Rule`]: what a caller says of each tensor, by a function.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::tensor::TensorInfo;

/// A function of the caller's. Loads of one checkpoint share it, so it is called by one of them at a time: it need not be `Sync`. It is called under its
/// lock, so one that itself begins such a load waits for itself.
pub(super) struct Rule<T>(Arc<Mutex<Function<T>>>);

type Function<T> = dyn Fn(&TensorInfo) -> T + Send;

impl<T> Rule<T> {
    pub(super) fn new(rule: impl Fn(&TensorInfo) -> T + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(rule)))
    }

    /// What it says of a tensor.
    pub(super) fn of(&self, info: &TensorInfo) -> T {
        // One that has panicked before is asked again: it is the caller's.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)(info)
    }
}

impl<T> Clone for Rule<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Rule<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rule")
    }
}
