//! A CUDA stream and its events.

use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUdeviceptr, CUevent, CUresult, CUstream, CUstream_flags};

use super::context::{Context, Current};
use super::status::check;
use crate::device::{Stream, Transform};
use crate::error::{Error, Result};

/// Events have numbers below this; each number takes 8 bytes of a list.
const MAX_EVENTS: usize = 1 << 20;

/// A stream that does not wait for the default stream, with events that block instead of spinning.
#[derive(Debug)]
pub(super) struct CudaStream {
    context: &'static Context,
    raw: CUstream,
    /// By number; null where not used yet. Locked to look an event up, not while it is waited for.
    events: Mutex<Vec<CUevent>>,
    /// For `synchronize`.
    end: CUevent,
}

// SAFETY: the driver API may be called with these handles from any thread.
unsafe impl Send for CudaStream {}
// SAFETY: as above, from several at once too.
unsafe impl Sync for CudaStream {}

impl CudaStream {
    pub(super) fn new(context: &'static Context) -> Result<Self> {
        let current = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: C1, C3; `raw` is valid for the write.
        let status = unsafe { sys::cuStreamCreate(&mut raw, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
        check(&context.name, "create a stream", status)?;
        // From here on the drop cleans up.
        let mut stream = Self { context, raw, events: Mutex::default(), end: ptr::null_mut() };
        stream.end = context.create_event(&current)?;
        Ok(stream)
    }

    fn events(&self) -> MutexGuard<'_, Vec<CUevent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event with this number, if it has been used.
    fn event(&self, event: usize) -> Option<CUevent> {
        self.events().get(event).copied().filter(|event| !event.is_null())
    }

    fn record_raw(&self, event: CUevent, _: &Current) -> Result<()> {
        // SAFETY: C1, C3; event and stream are of this context and live.
        check(&self.context.name, "record an event", unsafe { sys::cuEventRecord(event, self.raw) })
    }

    fn wait_raw(&self, event: CUevent, _: &Current) -> Result<()> {
        // SAFETY: C1, C3; the event is of this context and lives.
        check(&self.context.name, "wait for copies", unsafe { sys::cuEventSynchronize(event) })
    }
}

// SAFETY: T1: the driver copies just those ranges, and launches are checked against theirs. T2, T3: the driver's streams are ordered, and an event
// has passed when all before it has ended; what cannot be asked is an error.
unsafe impl Stream for CudaStream {
    unsafe fn copy_to_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; the caller promises that both ranges stay valid until an event behind this has passed.
        let status =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to as CUdeviceptr, from.cast(), bytes as usize, self.raw) };
        check(&self.context.name, "copy to the device", status)
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: as above.
        let status =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from as CUdeviceptr, bytes as usize, self.raw) };
        check(&self.context.name, "copy to the host", status)
    }

    unsafe fn copy_on_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: as above.
        let status = unsafe {
            sys::cuMemcpyDtoDAsync_v2(to as CUdeviceptr, from as CUdeviceptr, bytes as usize, self.raw)
        };
        check(&self.context.name, "copy on the device", status)
    }

    unsafe fn transform(&self, transform: &Transform) -> Result<()> {
        let current = self.context.enter()?;
        // SAFETY: passed on; the stream is of this context.
        unsafe { self.context.functions.launch(self.context, self.raw, transform, &current) }
    }

    fn record(&self, event: usize) -> Result<()> {
        if event >= MAX_EVENTS {
            return Err(Error::Device {
                device: self.context.name.clone(),
                operation: "record an event",
                detail: format!("got event number {event}, expected one below {MAX_EVENTS}"),
                remedy: "use small numbers".into(),
            });
        }
        let current = self.context.enter()?;
        let mut events = self.events();
        if events.len() <= event {
            events.resize(event + 1, ptr::null_mut());
        }
        if events[event].is_null() {
            events[event] = self.context.create_event(&current)?;
        }
        let event = events[event];
        drop(events);
        self.record_raw(event, &current)
    }

    fn wait(&self, event: usize) -> Result<()> {
        match self.event(event) {
            Some(event) => self.wait_raw(event, &self.context.enter()?),
            None => Ok(()),
        }
    }

    fn has_passed(&self, event: usize) -> Result<bool> {
        let Some(event) = self.event(event) else { return Ok(true) };
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; the event is of this context and lives.
        match unsafe { sys::cuEventQuery(event) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => check(&self.context.name, "ask for copies", status).map(|()| true),
        }
    }

    fn synchronize(&self) -> Result<()> {
        // cuStreamSynchronize would spin, unless the whole context was set up otherwise.
        let current = self.context.enter()?;
        self.record_raw(self.end, &current)?;
        self.wait_raw(self.end, &current)
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        // At the end of the process the driver may be gone, and a forked child has none: then there is nothing to destroy.
        let Ok(_current) = self.context.enter() else { return };
        for &event in self.events().iter().chain([&self.end]).filter(|event| !event.is_null()) {
            // SAFETY: C1, C3; created here, destroyed once. An event that is still recorded goes when it has passed.
            let _ = unsafe { sys::cuEventDestroy_v2(event) };
        }
        // SAFETY: as above; the driver keeps the stream until its work has ended.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
    }
}
