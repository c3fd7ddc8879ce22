//! Memory that is used on streams. Work is held up by the host, so that it is known to be under way when memory is dropped.

use std::ffi::c_void;
use std::ptr;
use std::sync::mpsc::{self, Receiver, Sender};

use cudarc::driver::sys::{self, CUdeviceptr, CUresult, CUstream};
use libtest_mimic::Failed;
use tensorhold::allocator::{Error, Request};
use tensorhold::{Device, OrderedStream};

use crate::support::pool_for;

fn ok(status: CUresult) {
    assert_eq!(status, CUresult::CUDA_SUCCESS);
}

/// A stream of the application's.
struct AppStream {
    raw: CUstream,
    ordered: Box<dyn OrderedStream>,
}

impl AppStream {
    fn new(device: &Device) -> Self {
        let mut raw = ptr::null_mut();
        // SAFETY: the caller has made the context current; `raw` is valid for the write, and never destroyed.
        let ordered = unsafe {
            ok(sys::cuStreamCreate(&mut raw, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32));
            device.stream_from_raw(raw.cast()).unwrap()
        };
        Self { raw, ordered }
    }

    /// Keeps what is enqueued next from beginning until the sender says something, or goes.
    fn hold_up(&self) -> Sender<()> {
        unsafe extern "C" fn wait(go: *mut c_void) {
            // SAFETY: the pointer that was made below, used once.
            let go = unsafe { Box::from_raw(go.cast::<Receiver<()>>()) };
            let _ = go.recv();
        }
        let (sender, go) = mpsc::channel::<()>();
        let go = Box::into_raw(Box::new(go));
        // SAFETY: the stream lives; the function takes the box over.
        unsafe { ok(sys::cuLaunchHostFunc(self.raw, Some(wait), go.cast())) };
        sender
    }

    fn fill(&self, at: *const u8, value: u8, bytes: u64) {
        // SAFETY: the callers own the range, or use it on this stream.
        unsafe { ok(sys::cuMemsetD8Async(at as CUdeviceptr, value, bytes as usize, self.raw)) };
    }

    fn copy(&self, to: *const u8, from: *const u8, bytes: u64) {
        let (to, from) = (to as CUdeviceptr, from as CUdeviceptr);
        // SAFETY: as above.
        unsafe { ok(sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.raw)) };
    }

    fn synchronize(&self) {
        // SAFETY: the stream lives.
        unsafe { ok(sys::cuStreamSynchronize(self.raw)) };
    }
}

fn on_host(at: *const u8, bytes: u64) -> Vec<u8> {
    let mut copy = vec![0; bytes as usize];
    // SAFETY: the callers own the range, and `copy` is as long.
    unsafe { ok(sys::cuMemcpyDtoH_v2(copy.as_mut_ptr().cast(), at as CUdeviceptr, copy.len())) };
    copy
}

const BYTES: u64 = 32 << 20;

/// The check of the fence: without it, the second stream would write while the first has yet to read.
pub(crate) fn work_that_reads_a_dropped_range_never_sees_it_reused() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let (reader, writer) = (AppStream::new(&device), AppStream::new(&device));
    let pool = pool_for(&device);
    let request = Request::new(BYTES, 256);
    let copies = pool.place("copies", request)?;
    for same_stream in [true, false] {
        let mut read = pool.place_on(&*reader.ordered, "read", request)?;
        let address = {
            let mut use_ = read.use_mut_on(&*reader.ordered)?.expect("it is the only owner");
            reader.fill(use_.as_mut_ptr(), 0xaa, BYTES);
            let address = use_.as_mut_ptr().cast_const();
            use_.end()?;
            address
        };
        reader.synchronize();
        let go = reader.hold_up();
        let use_ = read.use_on(&*reader.ordered)?;
        reader.copy(copies.as_ptr(), use_.as_ptr(), BYTES);
        use_.end()?;
        drop(read);
        let next = if same_stream { &reader } else { &writer };
        let mut written = pool.place_on(&*next.ordered, "written", request)?;
        let mut use_ = written.use_mut_on(&*next.ordered)?.expect("it is the only owner");
        assert_eq!(use_.as_mut_ptr().cast_const(), address, "the range was not used again");
        next.fill(use_.as_mut_ptr(), 0x55, BYTES);
        use_.end()?;
        drop(go);
        reader.synchronize();
        next.synchronize();
        assert!(on_host(copies.as_ptr(), BYTES).iter().all(|&byte| byte == 0xaa), "it was overwritten");
        assert!(on_host(address, BYTES).iter().all(|&byte| byte == 0x55));
        drop(written);
        pool.trim();
    }
    Ok(())
}

pub(crate) fn a_range_in_use_is_pending_and_not_placed_for_all() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let stream = AppStream::new(&device);
    let pool = pool_for(&device);
    let _keep = pool.place("keep", Request::new(256, 256))?;
    let read = pool.place("read", Request::new(BYTES, 256))?;
    let go = stream.hold_up();
    let use_ = read.use_on(&*stream.ordered)?;
    let address = use_.as_ptr();
    use_.end()?;
    drop(read);
    let other = pool.place("other", Request::new(BYTES, 256))?;
    assert_ne!(other.use_on(&*stream.ordered)?.as_ptr(), address);
    assert_eq!(pool.stats().pending_bytes, BYTES);
    drop(go);
    pool.trim();
    assert_eq!(pool.stats().pending_bytes, 0);
    Ok(())
}

pub(crate) fn a_stream_that_is_captured_is_an_error() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let stream = AppStream::new(&device);
    let pool = pool_for(&device);
    let fragment = pool.place("t", Request::new(4096, 256))?;
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream lives.
    unsafe { ok(sys::cuStreamBeginCapture_v2(stream.raw, mode)) };
    let refused = fragment.use_on(&*stream.ordered);
    assert!(matches!(refused, Err(Error::Stream { .. })), "{refused:?}");
    drop(refused);
    let mut graph = ptr::null_mut();
    // SAFETY: the stream lives and is captured; the graph is destroyed once.
    unsafe {
        ok(sys::cuStreamEndCapture(stream.raw, &mut graph));
        ok(sys::cuGraphDestroy(graph));
    }
    fragment.use_on(&*stream.ordered)?.end()?;
    // What stands for another stream on each thread is none to order by.
    // SAFETY: a name for a stream that there always is.
    assert!(unsafe { device.stream_from_raw(2 as *mut c_void) }.is_err());
    // SAFETY: the default stream.
    assert!(unsafe { device.stream_from_raw(ptr::null_mut()) }.is_ok());
    Ok(())
}

pub(crate) fn the_cpu_reads_pinned_memory_after_what_writes_to_it() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let stream = AppStream::new(&device);
    let mut written = pool_for(&Device::pinned()?).place("written", Request::new(BYTES, 256))?;
    assert!(written.as_bytes().is_some());
    let go = stream.hold_up();
    let mut use_ = written.use_mut_on(&*stream.ordered)?.expect("it is the only owner");
    stream.fill(use_.as_mut_ptr(), 0x33, BYTES);
    use_.end()?;
    assert!(written.as_bytes().is_none() && written.as_bytes_mut().is_none());
    drop(go);
    stream.synchronize();
    assert!(written.as_bytes().ok_or("its writes have ended")?.iter().all(|&byte| byte == 0x33));
    Ok(())
}
