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
mod handles;
mod host;
mod idle;
#[cfg(feature = "cuda-external")]
mod numa;
mod transform;

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use tensorhold_allocator::{Memory, OrderedStream};

pub use self::handles::HandleTypes;
use self::idle::IdleStreams;
use crate::error::{Error, Result};

pub use transform::Transform;

/// A device that tensors can be loaded to. A cheap handle: clones are the same device.
#[derive(Clone)]
pub struct Device {
    /// Shared by all clones. Before the driver, so that what goes with the last of them goes while its driver lives.
    idle: Arc<IdleStreams>,
    driver: Arc<dyn Driver>,
    host_accessible: bool,
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

/// What a backend provides.
///
/// The methods may be called from any thread and leave the thread's current context, where the platform has such a
/// thing, as it was; except for `push_context` and `pop_context`, whose purpose it is.
pub trait Driver: Send + Sync + fmt::Debug + 'static {
    /// The device's name, such as `host` or `cuda:0`.
    fn name(&self) -> &str;

    /// What kind of device it is.
    fn kind(&self) -> DeviceKind;

    /// The memory that tensors are placed in.
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
            remedy: "use a CUDA device, or ask for none",
        })
    }

    /// Host-accessible memory that [`Stream`] copies from and to at full speed.
    fn staging_memory(&self) -> Arc<dyn Memory>;

    /// The NUMA node that staging memory is placed on, for the report of a load; `None` where it is not placed, as where
    /// the machine has but one.
    fn staging_node(&self) -> Option<u32> {
        None
    }

    /// A new stream.
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
            remedy: "use the addresses of tensors, and drop tensors when what uses them has ended",
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

/// Copies in order, with numbered events. Any thread may use it at any time.
///
/// Dropping a stream does not wait for it: [`synchronize`](Self::synchronize) first.
pub trait Stream: Send + Sync {
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
            remedy: "copy through host memory instead",
        })
    }

    /// Enqueues a conversion or a gather, from staging memory or the device's to the device's. Called only where the driver
    /// [has transforms](Driver::has_transforms); the default is that there are none.
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
            remedy: "transform on the CPU, before the copy",
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
        let shares = driver.memory().is_host_accessible();
        let idle = driver.idle_streams();
        let device = Self::from_driver(Arc::new(driver));
        // Those of the context: the same however often the device is opened, and not destroyed with any handle. Where the CPU
        // copies, there are others.
        if shares { device } else { Self { idle, ..device } }
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
        let host_accessible = driver.memory().is_host_accessible();
        Self { idle: Arc::default(), driver, host_accessible }
    }

    /// What the device is made of.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// The device's name, such as `host` or `cuda:0`.
    pub fn name(&self) -> &str {
        self.driver.name()
    }

    /// What kind of device it is.
    pub fn kind(&self) -> DeviceKind {
        self.driver.kind()
    }

    /// Whether the CPU can read and write the device's memory.
    pub fn is_host_accessible(&self) -> bool {
        self.host_accessible
    }

    /// The memory that tensors are placed in.
    pub fn memory(&self) -> Arc<dyn Memory> {
        self.driver.memory()
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
        self.driver.memory_with(handles)
    }

    /// The memory that files are read into on their way to the device: host memory, page-locked where that helps.
    pub fn staging_memory(&self) -> Arc<dyn Memory> {
        self.driver.staging_memory()
    }

    /// A stream on which nothing is enqueued, for the caller alone: one that was kept, or else a new one.
    pub(crate) fn take_stream(&self) -> Result<Box<dyn Stream>> {
        self.idle.take().map_or_else(|| self.driver.stream(), Ok)
    }

    /// Keeps a stream that was taken, for whoever asks next. Only one on which nothing has failed, and that has been
    /// synchronized since: any other is to be dropped.
    pub(crate) fn keep_stream(&self, stream: Box<dyn Stream>) {
        self.idle.put(stream);
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
        self.driver.push_context()?;
        Ok(ContextGuard { driver: &*self.driver, thread_bound: PhantomData })
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
        unsafe { self.driver.stream_from_raw(raw) }
    }

    /// Lets this device's kernels and copies address the memory of `peer`. Enabling it twice is fine.
    ///
    /// # Errors
    /// When the two are not peers, with the reason.
    pub fn enable_peer_access(&self, peer: &Device) -> Result<()> {
        self.driver.enable_peer_access(&*peer.driver)
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
        remedy: "copy through host memory instead",
    }
}

#[cfg(not(feature = "cuda-external"))]
fn built_without_cuda(device: &str) -> Error {
    Error::Device {
        device: device.into(),
        operation: "open",
        detail: "this build has no CUDA".into(),
        remedy: "build with the `cuda` feature, or use Device::host()",
    }
}
