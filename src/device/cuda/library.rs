//! The driver library: there or not, complete or not, initialised once.

use std::sync::OnceLock;

use cudarc::driver::sys;
use tensorhold_allocator::Process;

use super::status::check;
use crate::error::{Error, Remedy, Result};
use crate::fork;

/// Proof that the driver can be called (C1).
#[derive(Debug, Clone, Copy)]
pub(super) struct Library(());

/// The oldest driver that serves: r525 answers 12000.
const MIN_VERSION: i32 = 12000;

/// What to do when there is no driver to speak of.
const INSTALL: Remedy = Remedy::DRIVER;

/// Every symbol that is called in this folder. cudarc panics when it meets one that is missing.
#[cfg(feature = "cuda")]
const SYMBOLS: [&str; 46] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetAttribute",
    "cuDeviceCanAccessPeer",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxGetState",
    "cuCtxGetCurrent",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxSynchronize",
    "cuCtxEnablePeerAccess",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemAlloc_v2",
    "cuMemCreate",
    "cuMemGetAllocationGranularity",
    "cuMemMap",
    "cuMemRelease",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamGetCtx",
    "cuStreamGetId",
    "cuStreamIsCapturing",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuMemHostGetDevicePointer_v2",
    "cuModuleLoadDataEx",
    "cuModuleGetFunction",
    "cuLaunchKernel",
];

impl Library {
    /// The driver, for a device called `device`.
    ///
    /// # Errors
    /// When it is missing, too old, or finds no device.
    pub(super) fn open(device: &str) -> Result<Self> {
        type Opened = std::result::Result<(), (String, Remedy)>;
        static OPENED: OnceLock<(Opened, Process)> = OnceLock::new();
        match OPENED.get_or_init(|| (load(), Process::current())) {
            // What was initialised by a parent is of no use.
            (Ok(()), process) => fork::check(*process, "use the CUDA driver").map(|()| Self(())),
            (Err((detail, remedy)), _) => Err(Error::Device {
                device: device.into(),
                operation: "open",
                detail: detail.clone(),
                remedy: *remedy,
            }),
        }
    }

    /// How many devices there are.
    pub(super) fn device_count(self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: C1; `count` is valid for the write.
        check("cuda", "count devices", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

fn load() -> std::result::Result<(), (String, Remedy)> {
    probe()?;
    // SAFETY: the driver is there and has the symbol, as `probe` found.
    let initialised = check("cuda", "initialise", unsafe { sys::cuInit(0) });
    if let Err(Error::Device { detail, remedy, .. }) = initialised {
        return Err((detail, remedy));
    }
    let mut version = 0;
    // SAFETY: as above; `version` is valid for the write.
    let _ = unsafe { sys::cuDriverGetVersion(&mut version) };
    if version < MIN_VERSION {
        return Err((
            format!("the CUDA driver is version {version}, expected at least {MIN_VERSION}"),
            INSTALL,
        ));
    }
    Ok(())
}

/// Whether the library is there and complete.
#[cfg(feature = "cuda")]
fn probe() -> std::result::Result<(), (String, Remedy)> {
    // SAFETY: loading libcuda runs its initialisers, which are made to be run in any process.
    if !unsafe { sys::is_culib_present() } {
        return Err((
            "there is no CUDA driver on this machine: libcuda.so is not to be found".into(),
            INSTALL,
        ));
    }
    for symbol in SYMBOLS {
        // SAFETY: the library was found just now; the symbol is looked up, not called.
        let found = unsafe { sys::culib().get::<*const ()>(symbol.as_bytes()) };
        if found.is_err() {
            return Err((format!("the CUDA driver is too old: it has no {symbol}"), INSTALL));
        }
    }
    Ok(())
}

/// The application chose how the driver is linked, and answers for its being complete.
#[cfg(not(feature = "cuda"))]
fn probe() -> std::result::Result<(), (String, Remedy)> {
    Ok(())
}
