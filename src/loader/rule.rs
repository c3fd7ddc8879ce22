//! [`Rule`]: what a caller says of each tensor, by a function.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tensorhold_allocator::Quoted;

use crate::error::{Error, Remedy, Result};
use crate::tensor::TensorInfo;

/// A function of the caller's. Loads of one checkpoint share it, so it is called by one of them at a time: it need not be `Sync`. It is called under its
/// lock, so a load that it begins itself, and that asks it, is an error.
pub(super) struct Rule<T>(Arc<Mutex<Function<T>>>);

type Function<T> = dyn Fn(&TensorInfo) -> T + Send;

thread_local! {
    /// The rules that this thread asks at the moment, by their addresses.
    static ASKED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// A rule is asked on this thread.
struct Asking(usize);

impl<T> Rule<T> {
    pub(super) fn new(rule: impl Fn(&TensorInfo) -> T + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(rule)))
    }

    /// What it says of a tensor.
    ///
    /// # Errors
    /// When the rule itself asks: its thread would wait for itself.
    pub(super) fn of(&self, info: &TensorInfo) -> Result<T> {
        let _asking = Asking::begin(Arc::as_ptr(&self.0).addr()).ok_or_else(|| Error::Option {
            option: "select, keep, dtype_by or cut_by",
            got: format!(
                "a rule that, asked of tensor {}, begins a load that asks the same rule",
                Quoted(&info.name)
            ),
            expected: "one that answers without such a load".into(),
            remedy: Remedy::OTHER_LOADER,
        })?;
        // One that has panicked before is asked again: it is the caller's.
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner)(info))
    }
}

impl Asking {
    /// `None` if the rule of this address is asked on this thread already.
    fn begin(address: usize) -> Option<Self> {
        ASKED.with_borrow_mut(|asked| {
            let is_first = !asked.contains(&address);
            is_first.then(|| {
                asked.push(address);
                Self(address)
            })
        })
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        ASKED.with_borrow_mut(|asked| asked.retain(|address| *address != self.0));
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
