//! [`Rule`]: a caller's function of a tensor's description.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tensorhold_allocator::Quoted;

use crate::error::{Error, Remedy, Result};
use crate::tensor::TensorInfo;

/// A function of the caller. Loads of one checkpoint share it and call it one at a time, so it need not be
/// `Sync`. It runs under its lock, so a load that the function itself starts, and that calls the same
/// function, is an error.
pub(crate) struct Rule<T>(Arc<Mutex<Function<T>>>);

type Function<T> = dyn Fn(&TensorInfo) -> T + Send;

thread_local! {
    /// Addresses of the rules that this thread is calling.
    static CALLING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Marks a rule as being called on this thread.
struct CallGuard(usize);

impl<T> Rule<T> {
    pub(crate) fn new(rule: impl Fn(&TensorInfo) -> T + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(rule)))
    }

    /// Calls the rule for a tensor.
    ///
    /// # Errors
    /// When this thread is calling the rule already: it would wait for itself.
    pub(crate) fn of(&self, info: &TensorInfo) -> Result<T> {
        let _guard = CallGuard::enter(Arc::as_ptr(&self.0).addr()).ok_or_else(|| Error::Option {
            option: "select, keep, dtype_by or cut_by",
            got: format!(
                "a rule that, asked of tensor {}, begins a load that asks the same rule",
                Quoted(&info.name)
            ),
            expected: "one that answers without such a load".into(),
            remedy: Remedy::OTHER_LOADER,
        })?;
        // A rule that panicked is called again: its state is the caller's concern.
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner)(info))
    }
}

impl CallGuard {
    /// `None` if this thread is calling the rule at this address already.
    fn enter(address: usize) -> Option<Self> {
        CALLING.with_borrow_mut(|calling| {
            let is_first = !calling.contains(&address);
            is_first.then(|| {
                calling.push(address);
                Self(address)
            })
        })
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        CALLING.with_borrow_mut(|calling| calling.retain(|address| *address != self.0));
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
