//! Devices: where tensors live, and how bytes get there.
//!
//! A [`Device`] is a handle on a [`Driver`]: its memory (regions for tensors), its staging memory (host memory that it
//! copies from at full speed), and its [`Stream`]s (copies in order, and events that tell when they have ended).
//! A backend is one folder or file here; all of them pass the suite in `tests/device_conformance.rs`, and a driver of
//! your own joins through [`Device::from_driver`].
//!
//! | device | memory | staging |
//! |---|---|---|
//! | [`Device::host`] | anonymous host memory, read in place | not needed |
//! | [`Device::pinned`] | page-locked host memory of a CUDA machine, read in place | not needed |
//! | [`Device::cuda`] | device memory | page-locked, one ring for each reader |
//! | the same, of a machine whose devices share memory with the CPU | that memory, read in place | not needed |

#[cfg(feature = "cuda-external")]
mod cuda;
#[cfg(feature = "cuda-external")]
mod descriptors;
mod driver;
mod handles;
mod host;
mod identity;
mod idle;
#[cfg(feature = "cuda-external")]
mod numa;
mod stream;
mod transform;

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use tensorhold_allocator::{Memory, MemoryId, OrderedStream};

pub use self::driver::Driver;
pub use self::handles::HandleTypes;
pub(crate) use self::identity::{check_same, difference};
use self::idle::IdleStreams;
pub use self::stream::Stream;
pub use self::transform::Transform;
use crate::error::{Error, Result};

/// A device that tensors can be loaded to. A cheap handle: clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Opened>);

/// What the clones of a device share: its driver, and what that was asked once (I7).
struct Opened {
    /// Before the driver, so that what goes with the last clone goes while its driver lives.
    idle: Arc<IdleStreams>,
    memory: Arc<dyn Memory>,
    memory_id: MemoryId,
    is_host_accessible: bool,
    staging_memory: Arc<dyn Memory>,
    driver: Arc<dyn Driver>,
}

/// The kinds of devices that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// Plain host memory.
    Host,
    /// Page-locked host memory.
    Pinned,
    /// A CUDA device, by its ordinal.
    Cuda(usize),
    /// A driver from outside this crate.
    Other,
}

impl Device {
    /// Host memory.
    pub fn host() -> Self {
        Self::from_driver(Arc::new(host::HostDriver::new()))
    }

    /// Page-locked host memory of a machine with CUDA, which its devices copy from and to at full speed.
    ///
    /// # Errors
    /// When there is no CUDA driver or device, or this build has no CUDA.
    pub fn pinned() -> Result<Self> {
        #[cfg(feature = "cuda-external")]
        return Ok(Self::from_driver(Arc::new(cuda::PinnedDriver::open()?)));
        #[cfg(not(feature = "cuda-external"))]
        Err(built_without_cuda("pinned"))
    }

    /// The CUDA device with this ordinal, through its primary context. Where it shares memory with the CPU, as those of Grace Hopper
    /// and DGX Spark do, tensors are placed in that, and files are read into it in place.
    ///
    /// # Errors
    /// When there is no CUDA driver or no such device, or this build has no CUDA.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda-external")]
        return cuda::CudaDriver::open(ordinal).map(Self::of_cuda);
        #[cfg(not(feature = "cuda-external"))]
        Err(built_without_cuda(&format!("cuda:{ordinal}")))
    }

    /// The CUDA device with this ordinal as if it shared memory with the CPU: where it does not, page-locked memory of the host's, mapped to
    /// the device, stands in for it. For trying that way where there is no such machine: kernels read the stand-in across the bus.
    ///
    /// # Errors
    /// As those of [`cuda`](Self::cuda), and when the device has other addresses for such memory than the CPU.
    pub fn cuda_unified(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda-external")]
        return cuda::CudaDriver::open_unified(ordinal).map(Self::of_cuda);
        #[cfg(not(feature = "cuda-external"))]
        Err(built_without_cuda(&format!("cuda:{ordinal}")))
    }

    #[cfg(feature = "cuda-external")]
    fn of_cuda(driver: cuda::CudaDriver) -> Self {
        // Those of the context: the same however often the device is opened, and not destroyed with any handle. Where the CPU
        // copies, there are others.
        let idle = if driver.memory().is_host_accessible() { Arc::default() } else { driver.idle_streams() };
        Self::open(Arc::new(driver), idle)
    }

    /// How many CUDA devices there are; 0 without a driver.
    pub fn cuda_count() -> usize {
        #[cfg(feature = "cuda-external")]
        return cuda::device_count();
        #[cfg(not(feature = "cuda-external"))]
        0
    }

    /// A device of one's own.
    ///
    /// A few of the driver's streams are kept for reuse, with nothing enqueued on them. They are dropped with the last
    /// clone of the device, which may be that of a tensor, on whatever thread.
    pub fn from_driver(driver: Arc<dyn Driver>) -> Self {
        Self::open(driver, Arc::default())
    }

    fn open(driver: Arc<dyn Driver>, idle: Arc<IdleStreams>) -> Self {
        let (memory, staging_memory) = (driver.memory(), driver.staging_memory());
        let (memory_id, is_host_accessible) = (memory.id(), memory.is_host_accessible());
        Self(Arc::new(Opened { idle, memory, memory_id, is_host_accessible, staging_memory, driver }))
    }

    /// What the device is made of.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.0.driver
    }

    /// The device's name, such as `host` or `cuda:0`.
    pub fn name(&self) -> &str {
        self.0.driver.name()
    }

    /// What kind of device it is.
    pub fn kind(&self) -> DeviceKind {
        self.0.driver.kind()
    }

    /// Whether the CPU can read and write the device's memory.
    pub fn is_host_accessible(&self) -> bool {
        self.0.is_host_accessible
    }

    /// The memory that tensors are placed in.
    pub fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.0.memory)
    }

    /// Which memory tensors are placed in: tensors of this device lie in memory with this id (Y1).
    pub(crate) fn memory_id(&self) -> MemoryId {
        self.0.memory_id
    }

    /// The memory that tensors are placed in, of which parts can be exported by such handles: for a pool over it, which loads
    /// [take](crate::Loader::pool).
    ///
    /// ```no_run
    /// use tensorhold::allocator::{Pool, RegionParts};
    /// use tensorhold::{Device, HandleTypes, Loader};
    ///
    /// let device = Device::cuda(0)?;
    /// let memory = device.memory_with(HandleTypes::default().with_posix_fd())?;
    /// let pool = Pool::builder(memory).region_parts(RegionParts::Require).build()?;
    /// let weights = Loader::new(device).checkpoint("llama/")?.pool(&pool).load()?;
    /// # Ok::<(), tensorhold::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the device or its driver has no such handles, with the reason: a little memory is made to find out.
    pub fn memory_with(&self, handles: HandleTypes) -> Result<Arc<dyn Memory>> {
        let memory = self.0.driver.memory_with(handles)?;
        check_same(&*memory, &*self.0.memory).map_err(|(got, expected)| Error::Device {
            device: self.name().into(),
            operation: "make memory that can be exported",
            detail: format!("its driver made {got}, expected {expected}"),
            remedy: "correct the driver: the two have one id".into(),
        })?;
        Ok(memory)
    }

    /// The memory that files are read into on their way to the device: host memory, page-locked where that helps.
    pub fn staging_memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.0.staging_memory)
    }

    /// A stream on which nothing is enqueued, for the caller alone: one that was kept, or else a new one.
    pub(crate) fn take_stream(&self) -> Result<Box<dyn Stream>> {
        self.0.idle.take().map_or_else(|| self.0.driver.stream(), Ok)
    }

    /// Enqueues work on a stream that no one else uses, and waits until it has ended. `kept` is the memory of the host that the work touches: it comes back
    /// when the work has ended, and is leaked where the device does not say so, or `enqueue` panics (I1). The device's own memory, and memory of pools, need not
    /// be kept: pools synchronize it before it is used again (Q3).
    ///
    /// # Errors
    /// When the device refuses the work, or does not say that it has ended.
    pub(crate) fn run<T>(
        &self,
        kept: T,
        enqueue: impl FnOnce(&dyn Stream, &mut T) -> Result<()>,
    ) -> Result<T> {
        let stream = self.take_stream()?;
        let mut kept = ManuallyDrop::new(kept);
        let enqueued = enqueue(&*stream, &mut kept);
        if let Err(error) = stream.synchronize() {
            tracing::warn!(device = self.name(), %error, "work may still be running: what it touches is never freed");
            return Err(error);
        }
        // T2: it has ended.
        let kept = ManuallyDrop::into_inner(kept);
        enqueued?;
        self.keep_stream(stream);
        Ok(kept)
    }

    /// Keeps a stream that was taken, for whoever asks next. Only one on which nothing has failed, and that has been
    /// synchronized since: any other is to be dropped.
    pub(crate) fn keep_stream(&self, stream: Box<dyn Stream>) {
        self.0.idle.put(stream);
    }

    /// Makes the device's context the thread's current one until the guard goes; for calling the driver directly with
    /// the addresses of tensors. Guards of several devices go in the reverse order of their making.
    ///
    /// The guard belongs to its thread:
    ///
    /// ```compile_fail
    /// let device = tensorhold::Device::host();
    /// let guard = device.make_current()?;
    /// std::thread::scope(|scope| { scope.spawn(move || drop(guard)); }); // `*const ()` cannot be sent between threads
    /// # Ok::<(), tensorhold::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn make_current(&self) -> Result<ContextGuard<'_>> {
        self.0.driver.push_context()?;
        Ok(ContextGuard { driver: &*self.0.driver, thread_bound: PhantomData })
    }

    /// A stream of the application's, a `CUstream` for a CUDA device, for [`Tensor::use_on`](crate::Tensor::use_on) and
    /// [`Pool::place_on`](crate::Pool::place_on).
    ///
    /// # Errors
    /// When it is not a stream of the device's primary context, or is the one that stands for another stream on each
    /// thread, or the device knows no such streams.
    ///
    /// # Safety
    /// `raw` is a stream, or null for the default one, and lives as long as what is returned.
    pub unsafe fn stream_from_raw(&self, raw: *mut c_void) -> Result<Box<dyn OrderedStream>> {
        // SAFETY: passed on.
        unsafe { self.0.driver.stream_from_raw(raw) }
    }

    /// Lets this device's kernels and copies address the memory of `peer`. Enabling it twice is fine.
    ///
    /// # Errors
    /// When the two are not peers, with the reason.
    pub fn enable_peer_access(&self, peer: &Device) -> Result<()> {
        self.0.driver.enable_peer_access(&*peer.0.driver)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Keeps a device's context current on this thread; see [`Device::make_current`].
#[derive(Debug)]
#[must_use = "the context is current only while the guard lives"]
pub struct ContextGuard<'a> {
    driver: &'a dyn Driver,
    /// The current context is a property of the thread: not `Send`.
    thread_bound: PhantomData<*const ()>,
}

impl Drop for ContextGuard<'_> {
    fn drop(&mut self) {
        self.driver.pop_context();
    }
}

pub(crate) fn not_peers(device: &str, peer: &str, detail: &str) -> Error {
    Error::Device {
        device: device.into(),
        operation: "enable peer access",
        detail: format!("{peer} is not a peer: {detail}"),
        remedy: "copy through host memory instead".into(),
    }
}

#[cfg(not(feature = "cuda-external"))]
fn built_without_cuda(device: &str) -> Error {
    Error::Device {
        device: device.into(),
        operation: "open",
        detail: "this build has no CUDA".into(),
        remedy: crate::error::Remedy::CUDA_FEATURE,
    }
}
