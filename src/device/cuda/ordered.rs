//! Streams of the application, and fences on them.

use std::any::Any;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUcontext, CUevent, CUresult, CUstream, CUstreamCaptureStatus};
use tensorhold_allocator::{Fence, MemoryError, OrderedStream};

use super::context::{Context, Current};
use super::status::check;
use crate::error::{Error, Result};

/// What the driver reads as the calling thread's own default stream: another one on each thread.
const PER_THREAD: usize = 2;

/// A stream that the application made in the device's primary context.
#[derive(Debug)]
pub(super) struct AppStream {
    context: &'static Context,
    raw: CUstream,
    id: u64,
}

// SAFETY: the driver API may be called with the handle from any thread.
unsafe impl Send for AppStream {}
// SAFETY: as above, from several at once too.
unsafe impl Sync for AppStream {}

impl AppStream {
    /// # Safety
    /// `raw` is a stream, or null for the default one, and lives as long as what is returned.
    pub(super) unsafe fn new(context: &'static Context, raw: *mut c_void) -> Result<Self> {
        let refused = |detail: &str| {
            Err(Error::Device {
                device: context.name.clone(),
                operation: "use a stream",
                detail: detail.into(),
                remedy: "make a stream in the device's primary context".into(),
            })
        };
        if raw as usize == PER_THREAD {
            return refused("the default stream of a thread is another one on each thread");
        }
        let raw: CUstream = raw.cast();
        let _current = context.enter()?;
        let (mut owner, mut id): (CUcontext, u64) = (ptr::null_mut(), 0);
        // SAFETY: C1, C3; the stream lives, and `owner` is valid for the write.
        check(&context.name, "use a stream", unsafe { sys::cuStreamGetCtx(raw, &mut owner) })?;
        if !context.is(owner) {
            return refused("it belongs to another context");
        }
        // SAFETY: as above, with `id`.
        check(&context.name, "use a stream", unsafe { sys::cuStreamGetId(raw, &mut id) })?;
        Ok(Self { context, raw, id })
    }

    fn check_current(&self, _: &Current) -> Result<()> {
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: C1, C3; the stream lives by the promise of `new`, and `status` is valid for the write.
        let asked = unsafe { sys::cuStreamIsCapturing(self.raw, &mut status) };
        check(&self.context.name, "ask whether a stream is captured", asked)?;
        if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            return Ok(());
        }
        Err(Error::Device {
            device: self.context.name.clone(),
            operation: "record a use of memory",
            detail: "the stream is being captured, and an event does not cover the replays of a graph".into(),
            remedy: "keep the tensor for as long as the graph, and use its address instead".into(),
        })
    }
}

// SAFETY: O2: the driver's ids are unique for the life of the process, and its streams are ordered. O3: cuStreamWaitEvent
// for events; for other fences the host waits.
unsafe impl OrderedStream for AppStream {
    fn id(&self) -> u64 {
        self.id
    }

    fn check(&self) -> std::result::Result<(), MemoryError> {
        let current = self.context.enter()?;
        Ok(self.check_current(&current)?)
    }

    fn record(&self) -> std::result::Result<Arc<dyn Fence>, MemoryError> {
        let current = self.context.enter()?;
        self.check_current(&current)?;
        let event = Event::take(self.context, &current)?;
        // SAFETY: C1, C3; event and stream are of this context and live.
        check(&self.context.name, "record an event", unsafe { sys::cuEventRecord(event.raw, self.raw) })?;
        Ok(Arc::new(event))
    }

    fn wait_for(&self, fence: &Arc<dyn Fence>) -> std::result::Result<(), MemoryError> {
        let any: &dyn Any = &**fence;
        let Some(event) = any.downcast_ref::<Event>() else { return fence.wait() };
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; the event lives, and the driver takes its state now: it may be recorded anew after the call.
        let status = unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) };
        Ok(check(&self.context.name, "wait for an event on a stream", status)?)
    }
}

/// An event that has been recorded. When it is done with, the context keeps it for the next.
#[derive(Debug)]
struct Event {
    context: &'static Context,
    raw: CUevent,
}

// SAFETY: the driver API may be called with the handle from any thread.
unsafe impl Send for Event {}
// SAFETY: as above, from several at once too.
unsafe impl Sync for Event {}

impl Event {
    fn take(context: &'static Context, current: &Current) -> Result<Self> {
        let raw = context.events.take().map_or_else(|| context.create_event(current), Ok)?;
        Ok(Self { context, raw })
    }
}

// SAFETY: O1: the driver's events.
unsafe impl Fence for Event {
    fn has_passed(&self) -> std::result::Result<bool, MemoryError> {
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; the event is of this context and lives.
        match unsafe { sys::cuEventQuery(self.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => Ok(check(&self.context.name, "ask an event", status).map(|()| true)?),
        }
    }

    fn wait(&self) -> std::result::Result<(), MemoryError> {
        let _current = self.context.enter()?;
        // SAFETY: as above.
        Ok(check(&self.context.name, "wait for an event", unsafe { sys::cuEventSynchronize(self.raw) })?)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // In a forked child the event is the parent's, and a thread of the parent may have locked those that are kept.
        if !self.context.is_of_this_process() {
            return;
        }
        let Some(raw) = self.context.events.keep(self.raw) else { return };
        // At the end of the process the driver may be gone: then there is nothing to destroy.
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: C1, C3; created by `take`, destroyed once. One that has not passed goes when it has.
        let _ = unsafe { sys::cuEventDestroy_v2(raw) };
    }
}
