//! How far a load is, told to the caller, who may stop it.

use std::ops::ControlFlow;

/// How far a load is. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of tensors that have arrived so far, counted as they are loaded.
    pub done_bytes: u64,
    /// Bytes of tensors in all.
    pub total_bytes: u64,
    /// Tensors to load in all.
    pub tensors: usize,
}

/// The caller's callback.
pub(super) type Callback = Box<dyn FnMut(&Progress) -> ControlFlow<()> + Send>;
