//! From a driver's status code to an error.

use std::ffi::{CStr, c_char};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use crate::error::{Error, Remedy, Result};

/// `Ok` for success; else the error, with the driver's name and words for the code.
///
/// Called with the status of a driver call, so the driver is there (C1).
pub(super) fn check(device: &str, operation: &'static str, status: CUresult) -> Result<()> {
    if status == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let name = words(status, sys::cuGetErrorName);
    let text = words(status, sys::cuGetErrorString);
    let detail = format!("{name} ({}): {text}", status as u32);
    Err(Error::Device { device: device.into(), operation, detail, remedy: remedy(status) })
}

fn words(status: CUresult, lookup: unsafe fn(CUresult, *mut *const c_char) -> CUresult) -> String {
    let mut text = ptr::null();
    // SAFETY: C1; `text` is valid for the write.
    let found = unsafe { lookup(status, &mut text) };
    if found != CUresult::CUDA_SUCCESS || text.is_null() {
        return "unknown status".into();
    }
    // SAFETY: on success the driver gives a terminated string that lives as long as the library.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn remedy(status: CUresult) -> Remedy {
    let remedy = match status {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => "free memory of that kind, or load less at once",
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => return Remedy::DEVICES,
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "make the kernel module and libcuda the same version: reboot"
        }
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => "end the process that has the device for itself",
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE => {
            "the context is lost: find the kernel that failed, and start the process again"
        }
        _ => "look the code up in the CUDA driver API's documentation",
    };
    remedy.into()
}
