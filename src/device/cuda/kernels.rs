//! Launching the kernels that convert and gather, from page-locked host memory to the device.
//!
//! A kernel's image is loaded when it is first launched in a context, and stays: primary contexts are not released either (C2).

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{
    self, CUdevice_attribute, CUdeviceptr, CUfunction, CUjit_option, CUresult, CUstream,
};
use tensorhold_kernels::{Kernel, Launch, Span};

use super::context::{Context, Current};
use super::status::check;
use crate::device::Transform;
use crate::error::{Error, Remedy, Result};

/// The functions of a context that have been loaded, by name.
#[derive(Debug, Default)]
pub(super) struct Functions {
    loaded: Mutex<HashMap<&'static CStr, Function>>,
    /// Whether kernels read registered host memory at the host's addresses. Asked for once.
    same_addresses: OnceLock<bool>,
}

#[derive(Debug, Clone, Copy)]
struct Function(CUfunction);

// SAFETY: the driver API may be called with the handle from any thread.
unsafe impl Send for Function {}

/// Room for what the driver's compiler says of an image.
const LOG_BYTES: usize = 4096;

/// What to do about an image that the driver does not take.
const UPDATE: Remedy = Remedy::DRIVER_OR_TRANSFORM;

impl Functions {
    /// The function of a kernel. Its image is loaded if it is not yet: others wait, since they probably want the same.
    fn get(&self, context: &Context, kernel: Kernel, _: &Current) -> Result<CUfunction> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.get(kernel.name()) {
            return Ok(function.0);
        }
        let image = kernel.ptx().map_err(|error| Error::Device {
            device: context.name.clone(),
            operation: "load a kernel",
            detail: error.to_string(),
            remedy: "build tensorhold again from unchanged sources".into(),
        })?;
        let (mut module, mut function, mut log) = (ptr::null_mut(), ptr::null_mut(), [0_u8; LOG_BYTES]);
        let mut options =
            [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut::<c_void>(LOG_BYTES - 1)];
        // SAFETY: C1, C3; the image ends with a 0, and the options name a buffer that is as long as is said.
        let status = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                image.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let said = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        refused(context, "load a kernel", kernel, status, &said)?;
        // SAFETY: C1, C3; the module was loaded, and the name ends with a 0.
        let status = unsafe { sys::cuModuleGetFunction(&mut function, module, kernel.name().as_ptr()) };
        refused(context, "find a kernel in its image", kernel, status, "")?;
        tracing::debug!(device = context.name, kernel = ?kernel.name(), "loaded a kernel");
        loaded.insert(kernel.name(), Function(function));
        Ok(function)
    }

    /// Where the device has a place in registered host memory, or in its own.
    fn source(&self, context: &Context, host: *const u8, _: &Current) -> Result<u64> {
        let same = match self.same_addresses.get() {
            Some(&same) => same,
            None => {
                let attribute =
                    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM;
                let same = context.attribute(attribute)? != 0;
                *self.same_addresses.get_or_init(|| same)
            }
        };
        if same {
            return Ok(host as u64);
        }
        let mut address: CUdeviceptr = 0;
        // SAFETY: C1, C3; `address` is valid for the write, and the driver checks the other.
        let status = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, host.cast_mut().cast(), 0) };
        if status == CUresult::CUDA_ERROR_INVALID_VALUE {
            // No host memory that is registered: the device's, by the caller's promise.
            return Ok(host as u64);
        }
        check(&context.name, "find staging memory on the device", status).map(|()| address)
    }

    /// Enqueues a transform.
    ///
    /// # Safety
    /// As [`Stream::transform`](crate::Stream::transform). `stream` is of the context, and lives.
    pub(super) unsafe fn launch(
        &self,
        context: &Context,
        stream: CUstream,
        transform: &Transform,
        current: &Current,
    ) -> Result<()> {
        let source =
            Span { address: self.source(context, transform.source, current)?, bytes: transform.source_bytes };
        let target = Span { address: transform.target as u64, bytes: transform.target_bytes };
        let counters = transform.counters.map(|counters| counters as u64);
        let launch = match &transform.conversion {
            Some(conversion) => Launch::convert(conversion, &transform.block, source, target, counters),
            None => Launch::gather(1, &transform.block, source, target),
        };
        let launch = launch.map_err(|error| transform.refused(&context.name, &error))?;
        let function = self.get(context, launch.kernel, current)?;
        let mut task = launch.task;
        let mut parameters = [ptr::from_mut(&mut task).cast::<c_void>()];
        // SAFETY: C1, C3; the kernel takes one Task, which is copied before the call returns. Its spans lie in the source and the target, as was
        // checked when the launch was made, which the caller promises to keep until the kernel has ended.
        let status = unsafe {
            sys::cuLaunchKernel(
                function,
                launch.grid,
                1,
                1,
                launch.block,
                1,
                1,
                0,
                stream,
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        refused(context, "launch a kernel", launch.kernel, status, "")
    }
}

/// The error for a kernel that the driver refuses, with what its compiler says.
fn refused(
    context: &Context,
    operation: &'static str,
    kernel: Kernel,
    status: CUresult,
    said: &str,
) -> Result<()> {
    check(&context.name, operation, status).map_err(|error| match error {
        Error::Device { device, operation, detail, remedy } => Error::Device {
            device,
            operation,
            detail: format!(
                "{}: {detail}{}{}",
                kernel.name().to_string_lossy(),
                if said.is_empty() { "" } else { ": " },
                said.trim()
            ),
            remedy: if is_of_the_image(status) { UPDATE } else { remedy },
        },
        error => error,
    })
}

/// Whether a status says that the driver cannot use an image, rather than that something else is wrong.
fn is_of_the_image(status: CUresult) -> bool {
    matches!(
        status,
        CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED
            | CUresult::CUDA_ERROR_NOT_FOUND
    )
}
