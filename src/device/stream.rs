//! [`Stream`]: copies in order, and events that tell when they have ended.

use super::Transform;
use crate::error::{Error, Result};

/// Copies in order, with numbered events. Any thread may use it at any time.
///
/// Dropping a stream does not wait for it: [`synchronize`](Self::synchronize) first.
///
/// The trait is unsafe to implement, since buffers are freed on its word:
///
/// ```compile_fail,E0200
/// # use tensorhold::Result;
/// struct Mine;
/// impl tensorhold::Stream for Mine { // the trait requires an `unsafe impl` declaration
///     fn synchronize(&self) -> Result<()> {
///         Ok(()) // whatever is enqueued
///     }
///     # unsafe fn copy_to_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> { Ok(()) }
///     # unsafe fn copy_to_host(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> { Ok(()) }
///     # fn record(&self, event: usize) -> Result<()> { Ok(()) }
///     # fn wait(&self, event: usize) -> Result<()> { Ok(()) }
///     # fn has_passed(&self, event: usize) -> Result<bool> { Ok(true) }
///     // ...
/// }
/// ```
///
/// # Safety
/// An implementation promises:
/// - **T1** A copy or transform touches the ranges that it is given and no others, and not before it is called. One that returned an error
///   counts as enqueued, as far as it was.
/// - **T2** When `synchronize` has returned `Ok`, all that was enqueued before the call has ended. Nothing is touched after that.
/// - **T3** When `wait` has returned `Ok`, or `has_passed` `Ok(true)`, all that was enqueued before the last `record` of that event has
///   ended.
///
/// An error of these three says nothing: what was enqueued may still be running.
pub unsafe trait Stream: Send + Sync {
    /// Enqueues a copy from host memory to the device.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// Until an event recorded after it has passed, or the stream is synchronized: `from` is valid for reads and `to`,
    /// an address in the device's memory, is valid for writes of `bytes` bytes, and nothing else writes either.
    unsafe fn copy_to_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()>;

    /// Enqueues a copy from the device to host memory.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// As [`copy_to_device`](Self::copy_to_device), with the roles of the two reversed.
    unsafe fn copy_to_host(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()>;

    /// Enqueues a copy from one place of the device's memory to another.
    ///
    /// # Errors
    /// When the driver refuses. The default is that the device has no such copies.
    ///
    /// # Safety
    /// Until an event recorded after it has passed, or the stream is synchronized: both are ranges of `bytes` bytes of the device's memory
    /// that do not overlap, and nothing else writes either.
    unsafe fn copy_on_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        let _ = (to, from, bytes);
        Err(Error::Device {
            device: "of this stream".into(),
            operation: "copy on the device",
            detail: "it has no copies within its memory".into(),
            remedy: "copy through host memory instead".into(),
        })
    }

    /// Enqueues a conversion or a gather, from staging memory or the device's to the device's. Called only where the driver
    /// [has transforms](super::Driver::has_transforms); the default implementation refuses.
    ///
    /// # Errors
    /// When the driver refuses, or has none.
    ///
    /// # Safety
    /// As [`Transform::on_cpu`], but that the target and the counters are in the device's memory, and the source there or in its staging memory; until an
    /// event recorded after it has passed, or the stream is synchronized.
    unsafe fn transform(&self, transform: &Transform) -> Result<()> {
        Err(Error::Device {
            device: "of this stream".into(),
            operation: transform.operation(),
            detail: "its streams do not transform".into(),
            remedy: "transform on the CPU, before the copy".into(),
        })
    }

    /// Records event number `event`: it passes when everything enqueued so far has ended. Events are made as they are
    /// first used; use small numbers.
    ///
    /// # Errors
    /// When the driver refuses.
    fn record(&self, event: usize) -> Result<()>;

    /// Waits, without spinning, until event number `event` has passed. One never recorded has passed.
    ///
    /// # Errors
    /// When the work before the event failed; what it wrote is then undefined.
    fn wait(&self, event: usize) -> Result<()>;

    /// Whether event number `event` has passed; does not wait. One never recorded has passed.
    ///
    /// # Errors
    /// When the work before the event failed; what it wrote is then undefined.
    fn has_passed(&self, event: usize) -> Result<bool>;

    /// Waits, without spinning, until everything enqueued has ended.
    ///
    /// # Errors
    /// When some of it failed; what it wrote is then undefined.
    fn synchronize(&self) -> Result<()>;
}
