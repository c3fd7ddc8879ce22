//! Filling: reader threads take jobs from the plan until none is left, or one of them fails, or the caller stops.
//!
//! # Invariants
//! - **W1** Each job is taken by one reader, so each byte of a region is written by one thread at most, and no one
//!   else knows the regions before the load returns (I3).
//! - **W2** When [`fill`] returns, in whatever way, every reader has ended and what it enqueued has ended too, or its
//!   device failed to say so; then the pool keeps the regions (I1).

use std::io::IoSliceMut;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};

use smallvec::SmallVec;
use tensorhold_allocator::{Placed, Pool};

use super::headers::Opened;
use super::lane::Lane;
use super::plan::{Job, Plan};
use super::progress::{Callback, Progress};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::read_full;

/// What is filled from what, and how.
pub(crate) struct Fill<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) files: &'a [Opened],
    pub(crate) target: &'a Placed,
    pub(crate) device: &'a Device,
    pub(crate) threads: usize,
    /// Where slots come from and how long each is; `None` to read in place.
    pub(crate) staging: Option<(&'a Pool, u64)>,
}

/// What the readers and the calling thread share.
struct State {
    next_job: AtomicUsize,
    done_bytes: AtomicU64,
    running: AtomicUsize,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Woken after each job when there is a callback, and when the last reader ends.
    caller: Thread,
    wake_each_job: bool,
}

impl State {
    /// Stops all readers; the first error is the one that is told.
    fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Stops the readers if the callback panics, so that the scope can join them.
struct StopOnDrop<'a>(&'a State);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Fill<'_> {
    /// Runs all jobs and returns the number of threads that read.
    ///
    /// The callback is called on this thread: before the first byte, as bytes arrive, and at the end.
    pub(crate) fn run(&self, callback: Option<&mut Callback>, tensors: usize) -> Result<usize> {
        let wanted = self.threads.min(self.plan.jobs.len());
        let state = State {
            next_job: AtomicUsize::new(0),
            done_bytes: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            caller: thread::current(),
            wake_each_job: callback.is_some(),
        };
        let mut report = Reporter { callback, total_bytes: self.plan.bytes, tensors, last: None };
        if report.tell(0).is_break() {
            return Err(self.cancelled(0));
        }
        let threads = thread::scope(|scope| {
            let stop = StopOnDrop(&state);
            let mut threads = 0;
            for index in 0..wanted {
                let reader = thread::Builder::new().name(format!("tensorhold-{index}"));
                state.running.fetch_add(1, Ordering::Relaxed);
                if let Err(source) = reader.spawn_scoped(scope, || self.read(&state)) {
                    state.running.fetch_sub(1, Ordering::Relaxed);
                    // Fewer readers are slower, none is a failure.
                    tracing::warn!(%source, threads, "the system refused a reader thread");
                    if threads == 0 {
                        state.fail(Error::Thread { source });
                    }
                    break;
                }
                threads += 1;
            }
            while state.running.load(Ordering::Acquire) > 0 {
                let done = state.done_bytes.load(Ordering::Relaxed);
                if !report.is_news(done) {
                    thread::park();
                } else if report.tell(done).is_break() {
                    state.fail(self.cancelled(done));
                    report.callback = None;
                }
            }
            drop(stop);
            threads
        });
        if let Some(error) = state.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let done = state.done_bytes.into_inner();
        if report.is_news(done) && report.tell(done).is_break() {
            return Err(self.cancelled(done));
        }
        Ok(threads)
    }

    fn cancelled(&self, done_bytes: u64) -> Error {
        Error::Cancelled { done_bytes, total_bytes: self.plan.bytes }
    }

    /// One reader.
    fn read(&self, state: &State) {
        let outcome = match self.staging {
            None => self.read_in_place(state),
            Some((staging, slot_bytes)) => self.read_staged(state, staging, slot_bytes),
        };
        if let Err(error) = outcome {
            state.fail(error);
        }
        // Release: the caller sees the failure, if there was one.
        state.running.fetch_sub(1, Ordering::Release);
        state.caller.unpark();
    }

    fn read_in_place(&self, state: &State) -> Result<()> {
        while let Some(job) = self.take(state) {
            // SAFETY: W1, P2: the job's span lies in a host-accessible region that `target` keeps.
            unsafe { self.read_job(job, self.address(job)) }?;
            self.finished(state, job);
        }
        Ok(())
    }

    fn read_staged(&self, state: &State, staging: &Pool, slot_bytes: u64) -> Result<()> {
        let mut lane = Lane::open(self.device, staging, slot_bytes)?;
        let passed = self.pass_jobs(state, &mut lane);
        // Also after an error: what has been enqueued ends before the load returns (W2).
        let finished = lane.finish();
        passed.and(finished)
    }

    fn pass_jobs(&self, state: &State, lane: &mut Lane) -> Result<()> {
        while let Some(job) = self.take(state) {
            // SAFETY: W1, P2: the span lies in a region that `target` keeps. The caller finishes the lane, and should
            // that fail, the region's pool synchronizes its memory before anything is reused (W2). The slot that the
            // lane gives is as long as the longest span, and ours until its copy is enqueued.
            unsafe { lane.pass(self.address(job), job.span, |slot| self.read_job(job, slot)) }?;
            self.finished(state, job);
        }
        Ok(())
    }

    /// The next job, unless there is none or the load is over.
    fn take(&self, state: &State) -> Option<&Job> {
        if state.stop.load(Ordering::Relaxed) {
            return None;
        }
        self.plan.jobs.get(state.next_job.fetch_add(1, Ordering::Relaxed))
    }

    fn finished(&self, state: &State, job: &Job) {
        state.done_bytes.fetch_add(job.file_bytes, Ordering::Relaxed);
        if state.wake_each_job {
            state.caller.unpark();
        }
    }

    /// Where a job's span begins.
    fn address(&self, job: &Job) -> *mut u8 {
        // The plan and the target come from one layout, so they have the same regions.
        self.target.bases[job.region].as_ptr().wrapping_add(job.offset as usize)
    }

    /// Reads a job's bytes to their places in a buffer that stands for its span.
    ///
    /// # Safety
    /// `span` is valid for writes of the job's span, which only the caller touches, and its bytes have values.
    unsafe fn read_job(&self, job: &Job, span: *mut u8) -> Result<()> {
        let file = &self.files[job.file].source;
        let mut buffers: SmallVec<[IoSliceMut<'_>; 16]> = self
            .plan
            .pieces_of(job)
            .iter()
            .map(|piece| {
                // SAFETY: P2: the piece lies within the span and overlaps no other; the caller promises the rest.
                let bytes = unsafe {
                    std::slice::from_raw_parts_mut(span.add(piece.offset as usize), piece.bytes as usize)
                };
                IoSliceMut::new(bytes)
            })
            .collect();
        let read = read_full(file, &mut buffers, job.file_offset)
            .map_err(|error| file.read_error(job.file_offset, job.file_bytes, error))?;
        if read < job.file_bytes {
            let end = job.file_offset + read;
            return Err(file.changed(format!(
                "it was cut short: {} bytes when opened, now it ends at {end}",
                file.len()
            )));
        }
        Ok(())
    }
}

/// Tells the callback what is new.
struct Reporter<'a> {
    callback: Option<&'a mut Callback>,
    total_bytes: u64,
    tensors: usize,
    last: Option<u64>,
}

impl Reporter<'_> {
    fn is_news(&self, done_bytes: u64) -> bool {
        self.callback.is_some() && self.last != Some(done_bytes)
    }

    fn tell(&mut self, done_bytes: u64) -> ControlFlow<()> {
        self.last = Some(done_bytes);
        let progress = Progress { done_bytes, total_bytes: self.total_bytes, tensors: self.tensors };
        match &mut self.callback {
            Some(callback) => callback(&progress),
            None => ControlFlow::Continue(()),
        }
    }
}
