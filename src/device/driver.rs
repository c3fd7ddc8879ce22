//! [`Driver`]: what a backend provides.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use tensorhold_allocator::{Memory, OrderedStream};

use super::{DeviceKind, HandleTypes, Stream, not_peers};
use crate::error::{Error, Result};

/// What a backend provides.
///
/// The methods may be called from any thread and leave the thread's current context, where the platform has such a
/// thing, as it was; except for `push_context` and `pop_context`, whose purpose it is.
///
/// The trait is unsafe to implement, since addresses are copied to and from on its word:
///
/// ```compile_fail,E0200
/// #[derive(Debug)]
/// struct Mine;
/// impl tensorhold::Driver for Mine { // the trait requires an `unsafe impl` declaration
///     # fn name(&self) -> &str { "mine" }
///     # fn kind(&self) -> tensorhold::DeviceKind { tensorhold::DeviceKind::Other }
///     # fn memory(&self) -> std::sync::Arc<dyn tensorhold::allocator::Memory> { todo!() }
///     # fn staging_memory(&self) -> std::sync::Arc<dyn tensorhold::allocator::Memory> { todo!() }
///     # fn stream(&self) -> tensorhold::Result<Box<dyn tensorhold::Stream>> { todo!() }
///     // ...
/// }
/// ```
///
/// # Safety
/// An implementation promises:
/// - **Q1** The addresses of `memory`, and of every memory with its id (M4), are those that its streams take as the device's. `memory_with` returns
///   memory with the same id.
/// - **Q2** `staging_memory` is host-accessible (M2), and every memory with its id is memory that its streams copy from and to as host memory.
/// - **Q3** For both, work on its streams is device work of M3: if streams do not end work before they return, both memories say that devices use
///   them, and their `synchronize` waits for the streams.
/// - **Q4** A `kind` of [`Host`](DeviceKind::Host) or [`Pinned`](DeviceKind::Pinned) says that `memory` is host-accessible;
///   [`Cuda`](DeviceKind::Cuda) says that its addresses are valid for kernels and copies in the primary context of the CUDA device
///   with that ordinal.
pub unsafe trait Driver: Send + Sync + fmt::Debug + 'static {
    /// The device's name, such as `host` or `cuda:0`.
    fn name(&self) -> &str;

    /// What kind of device it is (Q4).
    fn kind(&self) -> DeviceKind;

    /// The memory that tensors are placed in. A [`Device`](super::Device) asks once (Q1, Q3).
    fn memory(&self) -> Arc<dyn Memory>;

    /// The same memory, of which parts can be exported by such handles.
    ///
    /// # Errors
    /// When there is no such memory, with the reason. The default is that there are no handles.
    fn memory_with(&self, handles: HandleTypes) -> Result<Arc<dyn Memory>> {
        if !handles.is_any() {
            return Ok(self.memory());
        }
        Err(Error::Device {
            device: self.name().into(),
            operation: "make memory that can be exported",
            detail: format!("it has no handles of memory, asked for {handles:?}"),
            remedy: "use a CUDA device, or ask for none".into(),
        })
    }

    /// Host-accessible memory that [`Stream`] copies from and to at full speed. A [`Device`](super::Device) asks once (Q2, Q3).
    fn staging_memory(&self) -> Arc<dyn Memory>;

    /// The NUMA node that staging memory is placed on, for the report of a load; `None` where it is not placed, as where
    /// the machine has but one.
    fn staging_node(&self) -> Option<u32> {
        None
    }

    /// A new stream, with nothing enqueued on it.
    ///
    /// # Errors
    /// When the driver refuses.
    fn stream(&self) -> Result<Box<dyn Stream>>;

    /// Whether its streams convert and gather what lies in staging memory: [`Stream::transform`]. The default is that they do not, and
    /// then a load does so on the CPU, before it copies.
    fn has_transforms(&self) -> bool {
        false
    }

    /// A stream of the application's, by the platform's handle, on which the use of tensors can be recorded.
    ///
    /// # Errors
    /// When it is no stream of this device. The default is that the device knows no such streams.
    ///
    /// # Safety
    /// `raw` is a stream of the platform, and lives as long as what is returned.
    unsafe fn stream_from_raw(&self, raw: *mut c_void) -> Result<Box<dyn OrderedStream>> {
        let _ = raw;
        Err(Error::Device {
            device: self.name().into(),
            operation: "use a stream",
            detail: "the device has no streams of the application's".into(),
            remedy: "use the addresses of tensors, and drop tensors when what uses them has ended".into(),
        })
    }

    /// Makes the device's context the thread's current one, on top of those that were.
    ///
    /// # Errors
    /// When the driver refuses.
    fn push_context(&self) -> Result<()> {
        Ok(())
    }

    /// Undoes the last `push_context` on this thread.
    fn pop_context(&self) {}

    /// Lets this device's kernels and copies address the memory of `peer`.
    ///
    /// # Errors
    /// When the two are not peers, with the reason. The default is that no device has peers.
    fn enable_peer_access(&self, peer: &dyn Driver) -> Result<()> {
        Err(not_peers(self.name(), peer.name(), "only CUDA devices have peers"))
    }
}
