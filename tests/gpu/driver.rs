//! Device memory, kernels and times by the driver API, for tests and benches. A context has to be current, and every status is looked at.
#![allow(dead_code, reason = "tests and benches use a part each")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUdeviceptr, CUevent, CUfunction, CUjit_option, CUresult};
use tensorhold_kernels::{Kernel, Launch, Span};

/// Panics when a call failed, with the driver's name for the failure.
pub(crate) fn check(what: &str, status: CUresult) {
    assert_eq!(status, CUresult::CUDA_SUCCESS, "{what}");
}

/// Device memory of exactly that many bytes, so that a checker of accesses knows its end.
pub(crate) struct Memory {
    address: CUdeviceptr,
    bytes: usize,
}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Self {
        let mut address = 0;
        // SAFETY: a context is current; `address` is valid for the write.
        check("allocate", unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) });
        Self { address, bytes }
    }

    pub(crate) fn holding(bytes: &[u8]) -> Self {
        let memory = Self::new(bytes.len());
        memory.write(0, bytes);
        memory
    }

    /// All of it but for the first `offset` bytes.
    pub(crate) fn from(&self, offset: usize) -> Span {
        self.part(offset, self.bytes - offset)
    }

    pub(crate) fn part(&self, offset: usize, bytes: usize) -> Span {
        assert!(offset + bytes <= self.bytes);
        Span { address: self.address + offset as u64, bytes: bytes as u64 }
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.part(offset, bytes.len()).address;
        if bytes.is_empty() {
            return;
        }
        // SAFETY: both ranges are as long as is said, and the call returns when the copy is made.
        check("write", unsafe { sys::cuMemcpyHtoD_v2(to, bytes.as_ptr().cast(), bytes.len()) });
    }

    pub(crate) fn fill(&self, byte: u8) {
        // SAFETY: the range is the allocation.
        check("fill", unsafe { sys::cuMemsetD8_v2(self.address, byte, self.bytes) });
    }

    pub(crate) fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        let (mut read, from) = (vec![0; bytes], self.part(offset, bytes).address);
        if bytes == 0 {
            return read;
        }
        // SAFETY: both ranges are as long as is said, and the call returns when the copy is made.
        check("read", unsafe { sys::cuMemcpyDtoH_v2(read.as_mut_ptr().cast(), from, bytes) });
        read
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated above, freed once; the driver waits for what uses it.
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
    }
}

/// Launches kernels on the default stream. Their images are loaded once, and stay until the process ends.
#[derive(Default)]
pub(crate) struct Launcher {
    functions: RefCell<HashMap<&'static CStr, CUfunction>>,
}

impl Launcher {
    /// The function, and how long it took to have it.
    pub(crate) fn load(&self, kernel: Kernel) -> (CUfunction, Duration) {
        if let Some(&function) = self.functions.borrow().get(kernel.name()) {
            return (function, Duration::ZERO);
        }
        let started = Instant::now();
        let image = kernel.ptx().expect("an image of each kernel");
        let (mut module, mut function, mut log) = (ptr::null_mut(), ptr::null_mut(), [0_u8; 8192]);
        let mut options =
            [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut::<c_void>(log.len() - 1)];
        // SAFETY: a context is current; the image ends with a 0, and the options name a buffer that is as long as is said.
        let status = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let said = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        check(&format!("load {kernel:?}: {said}"), status);
        // SAFETY: the module was loaded; the name ends with a 0.
        let status = unsafe { sys::cuModuleGetFunction(&mut function, module, kernel.name().as_ptr()) };
        check(&format!("find {kernel:?}"), status);
        self.functions.borrow_mut().insert(kernel.name(), function);
        (function, started.elapsed())
    }

    /// Enqueues it.
    pub(crate) fn launch(&self, launch: &Launch) {
        let (function, _) = self.load(launch.kernel);
        let mut task = launch.task;
        let mut parameters = [ptr::from_mut(&mut task).cast::<c_void>()];
        // SAFETY: the kernel takes one Task, which is copied before the call returns; the spans in it were checked when the launch was made, and the
        // callers keep the memory until they have synchronized.
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
                ptr::null_mut(),
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check(&format!("launch {launch:?}"), status);
    }

    /// Launches it, and waits for it.
    pub(crate) fn run(&self, launch: &Launch) {
        self.launch(launch);
        // SAFETY: a context is current.
        check(&format!("run {launch:?}"), unsafe { sys::cuCtxSynchronize() });
    }
}

/// Enqueues a copy within the device.
pub(crate) fn copy(to: Span, from: Span) {
    assert_eq!(to.bytes, from.bytes);
    // SAFETY: the callers keep the memory until they have synchronized.
    let status =
        unsafe { sys::cuMemcpyDtoDAsync_v2(to.address, from.address, from.bytes as usize, ptr::null_mut()) };
    check("copy", status);
}

/// Two events.
pub(crate) struct Timer([CUevent; 2]);

impl Timer {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| {
            let mut event = ptr::null_mut();
            // SAFETY: a context is current; `event` is valid for the write.
            check("create an event", unsafe { sys::cuEventCreate(&mut event, 0) });
            event
        }))
    }

    /// The seconds that what `enqueue` enqueues takes on the device.
    pub(crate) fn seconds(&self, enqueue: impl FnOnce()) -> f64 {
        let record = |event| {
            // SAFETY: the event lives, and the default stream is there.
            check("record", unsafe { sys::cuEventRecord(event, ptr::null_mut()) });
        };
        record(self.0[0]);
        enqueue();
        record(self.0[1]);
        let mut milliseconds = 0.0;
        // SAFETY: both events were recorded; `milliseconds` is valid for the write.
        unsafe {
            check("wait", sys::cuEventSynchronize(self.0[1]));
            check("time", sys::cuEventElapsedTime(&mut milliseconds, self.0[0], self.0[1]));
        }
        f64::from(milliseconds) / 1e3
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        for event in self.0 {
            // SAFETY: created above, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}
