//! [`Fence`] and [`OrderedStream`]: how a pool learns when a device no longer uses a range.
//!
//! A pool knows no devices. Implement [`OrderedStream`] for a device's streams and [`Fence`] for its events;
//! [`Fragment::use_on`](crate::Fragment::use_on) and [`Pool::place_on`](crate::Pool::place_on) accept them.

use std::any::Any;
use std::sync::Arc;

use crate::error::MemoryError;

/// A point in the work of a stream, which passes when all work enqueued before it has ended.
///
/// It is [`Any`], so that a stream can tell the fences of its own kind from others.
///
/// # Safety
/// An implementation promises:
/// - **O1** Once `has_passed` has returned `Ok(true)`, or `wait` `Ok`, all work that was enqueued on the stream before
///   the fence was recorded has ended.
pub unsafe trait Fence: Any + Send + Sync {
    /// Whether it has passed. Does not wait.
    ///
    /// # Errors
    /// When the state cannot be determined, for example after the work has failed.
    fn has_passed(&self) -> Result<bool, MemoryError>;

    /// Waits, without spinning, until it has passed.
    ///
    /// # Errors
    /// As [`has_passed`](Self::has_passed).
    fn wait(&self) -> Result<(), MemoryError>;
}

/// A stream of device work, which ends in the order in which it was enqueued.
///
/// # Safety
/// An implementation promises:
/// - **O2** `id` is the same each time, and that of no other stream of the process, not of one that is gone either. Work with one id ends
///   in the order in which it was enqueued.
/// - **O3** What is enqueued after `wait_for` has returned `Ok` begins after the fence has passed.
pub unsafe trait OrderedStream: Send + Sync {
    /// The stream's id (O2).
    fn id(&self) -> u64;

    /// Whether uses on this stream can be recorded now.
    ///
    /// # Errors
    /// When they cannot, with the reason: for example while the stream is captured, since a fence does not cover replays.
    fn check(&self) -> Result<(), MemoryError>;

    /// Records a fence after all work enqueued so far.
    ///
    /// # Errors
    /// When the driver refuses, or [`check`](Self::check) would.
    fn record(&self) -> Result<Arc<dyn Fence>, MemoryError>;

    /// Orders work that is enqueued from now on after a fence, which may be of another kind of stream. The host waits only
    /// if the stream cannot.
    ///
    /// # Errors
    /// When the driver refuses.
    fn wait_for(&self, fence: &Arc<dyn Fence>) -> Result<(), MemoryError>;
}
