//! The progress of a load, reported to the caller, who may cancel it.

use std::ops::ControlFlow;

/// The progress of a load. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of tensors that have arrived, counted in their loaded types.
    pub done_bytes: u64,
    /// Bytes of all tensors.
    pub total_bytes: u64,
    /// Number of tensors to load.
    pub tensors: usize,
}

/// The caller's callback.
pub(super) type Callback = Box<dyn FnMut(&Progress) -> ControlFlow<()> + Send>;
