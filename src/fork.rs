//! [`OfProcess`]: what a forked child must leave alone.
//!
//! A child has its parent's memory but not its threads: it cannot join one, a lock that one held stays locked, and handles of a driver or a kernel's queue
//! are of no use. So an owner of such things keeps them in here.

use std::mem;

use tensorhold_allocator::Process;

use crate::error::{Error, Result};

/// A value that only the process that made it uses and drops. A forked child forgets it.
#[derive(Debug)]
pub(crate) struct OfProcess<T> {
    process: Process,
    /// `None` only once it has been taken out.
    value: Option<T>,
}

impl<T> OfProcess<T> {
    /// A value of this process.
    pub(crate) fn new(value: T) -> Self {
        Self { process: Process::current(), value: Some(value) }
    }

    /// The value; `None` in a forked child.
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.process.is_current())
    }

    /// The value, to be changed; `None` in a forked child.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.value.as_mut().filter(|_| self.process.is_current())
    }

    /// Takes the value out; `None` in a forked child, which forgets it.
    pub(crate) fn into_inner(mut self) -> Option<T> {
        if self.process.is_current() { self.value.take() } else { None }
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if !self.process.is_current() {
            mem::forget(self.value.take());
        }
    }
}

/// An error in a forked child of that process.
///
/// # Errors
/// In a forked child.
pub(crate) fn check(process: Process, operation: &'static str) -> Result<()> {
    if process.is_current() { Ok(()) } else { Err(Error::Forked { operation }) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::test_support::fork::in_child;

    #[test]
    fn a_child_neither_uses_nor_drops_a_value() {
        struct Joins;
        impl Drop for Joins {
            fn drop(&mut self) {
                // SAFETY: ends the child, whose parent sees that.
                unsafe { libc::_exit(2) };
            }
        }
        let mut owned = Some(OfProcess::new(Joins));
        in_child(|| {
            let owned = owned.as_mut().unwrap();
            assert!(owned.get().is_none() && owned.get_mut().is_none());
        });
        in_child(|| drop(owned.take()));
        in_child(|| assert!(owned.take().unwrap().into_inner().is_none()));
        std::mem::forget(owned.and_then(OfProcess::into_inner));
    }

    #[test]
    fn in_its_process_a_value_is_used_and_dropped() {
        let value = Arc::new(7);
        let mut owned = OfProcess::new(Arc::clone(&value));
        assert_eq!(
            (owned.get().map(|value| **value), owned.get_mut().map(|value| **value)),
            (Some(7), Some(7))
        );
        assert_eq!(Arc::strong_count(&value), 2);
        drop(owned);
        assert_eq!(Arc::strong_count(&value), 1);
        assert_eq!(OfProcess::new(value).into_inner().as_deref(), Some(&7));
    }
}
