//! The readers of a load: starting them, waiting for them, and reporting progress to the caller.
//!
//! [Buffered readers](super::buffered_reader) take jobs off the plan and defer those that are not cached to
//! [direct readers](super::direct_reader), which start when there is something to do.
//!
//! Readers call code from outside this crate: drivers, streams and memories. A panic there ends the reader
//! with an error. A panic of the callback propagates to the caller of the load, after all readers and all
//! work that they enqueued have ended (W2).

use std::any::Any;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::{self, Scope};

use super::context::{ReadContext, refusal_of_queue};
use super::cufile_setup::{self, CuFileDecision, CuFileReaders};
use super::job_queue::{Arrivals, JobQueue, LoadControl, ReaderKind};
use super::{buffered_reader, direct_reader, queue_depth};
use crate::error::{Error, Result};
use crate::io::{Backend, BackendKind, Queue};
use crate::loader::progress::{Callback, Progress};
use crate::loader::staging::FIRST_SLOTS;
use crate::report::Stages;

/// What the readers of a load did.
#[derive(Debug)]
pub(crate) struct ReadSummary {
    pub(crate) threads: usize,
    /// Bytes read through the page cache.
    pub(crate) buffered_bytes: u64,
    /// Bytes read past it.
    pub(crate) direct_bytes: u64,
    /// Bytes read by cuFile.
    pub(crate) gds_bytes: u64,
    pub(crate) stages: Stages,
    /// The backend of direct reads, if there were any, and the reason for it.
    pub(crate) direct: Option<(BackendKind, String)>,
    /// How cuFile read, if it did.
    pub(crate) cufile: Option<String>,
}

/// Why the readers of a load failed.
#[derive(Debug)]
pub(crate) struct ReadFailure {
    pub(crate) error: Error,
    /// Staging memory was refused: smaller slots may fit.
    pub(crate) for_staging: bool,
}

/// Stops the load's threads if the callback panics, so that a scope can join them.
pub(crate) struct StopOnPanic<'a>(pub(crate) &'a LoadControl);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

/// Runs all jobs. Calls the callback on this thread: before the first byte, as bytes arrive, and at the end.
///
/// # Errors
/// The first failure of a reader, a cancellation by the callback, or the refusal of all staging memory.
pub(crate) fn run(
    context: &ReadContext<'_>,
    callback: Option<&mut Callback>,
    control: &LoadControl,
    arrivals: Option<&Arrivals>,
) -> Result<ReadSummary, ReadFailure> {
    let jobs = context.scatter.plan.jobs.len();
    let direct_only =
        matches!(context.tuning.backend, Backend::Require(kind) if kind != BackendKind::Buffered);
    let tells = callback.is_some();
    let job_queue =
        JobQueue::new(context.scatter.plan, control, arrivals, direct_only, (thread::current(), tells));
    let total_bytes = context.scatter.plan.bytes;
    let mut report = ProgressReporter { callback, total_bytes, tensors: context.tensors, last: None };
    let failure_of = |error| ReadFailure { error, for_staging: false };
    if report.tell(0).is_break() {
        return Err(failure_of(cancelled(context, 0)));
    }
    let mut direct = DirectReaders::default();
    let read_all = || {
        thread::scope(|scope| {
            let _stop = StopOnPanic(control);
            let mut threads = ReaderThreads { context, job_queue: &job_queue, scope, started: 0 };
            if direct_only {
                threads.start_direct(&mut direct);
            } else {
                if jobs > 1 {
                    threads.start_buffered(context.tuning.threads.min(jobs));
                }
                if let Some(ring) = &context.ring {
                    ring.allow_growth();
                }
                if jobs == 1 {
                    threads.read_here();
                }
            }
            loop {
                // Read before `wants_direct`: a reader that has ended defers nothing more.
                let idle = job_queue.is_idle();
                if job_queue.wants_direct() && direct.is_wanted(context) && !control.is_stopped() {
                    threads.start_direct(&mut direct);
                    continue;
                }
                if idle {
                    break;
                }
                let done = job_queue.landed_bytes();
                if !report.is_news(done) {
                    thread::park();
                } else if report.tell(done).is_break() {
                    job_queue.fail(cancelled(context, done));
                    report.callback = None;
                }
            }
            threads.started
        })
    };
    let threads = catch_unwind(AssertUnwindSafe(read_all));
    // Also after a failure or a panic: all enqueued work ends before the load returns or unwinds (W2).
    if let Some(Err(error)) =
        context.ring.as_ref().map(|ring| caught("wait for copies", || ring.drain(&job_queue)))
    {
        job_queue.fail(error);
    }
    let threads = threads.unwrap_or_else(|panic| resume_unwind(panic));
    if let Some(error) = job_queue.failure() {
        return Err(failure_of(error));
    }
    let done = job_queue.landed_bytes();
    if done < total_bytes && !control.is_stopped() {
        // No reader was left.
        let error = job_queue.refusal().unwrap_or_else(|| cancelled(context, done));
        return Err(ReadFailure { error, for_staging: done == 0 });
    }
    let breaks = report.is_news(done) && report.tell(done).is_break();
    if breaks || done < total_bytes {
        return Err(failure_of(cancelled(context, done)));
    }
    let [buffered_bytes, direct_bytes, gds_bytes] = job_queue.counted();
    let stages = context.stage_totals.mean();
    let DirectReaders { readers: direct, cufile, .. } = direct;
    Ok(ReadSummary { threads, buffered_bytes, direct_bytes, gds_bytes, stages, direct, cufile })
}

/// The direct readers of a load.
#[derive(Debug, Default)]
struct DirectReaders {
    /// The backend of readers other than cuFile's, once they have started, and the reason for it.
    readers: Option<(BackendKind, String)>,
    /// Whether cuFile has been tried.
    tried_cufile: bool,
    /// How cuFile reads, if it does.
    cufile: Option<String>,
}

impl DirectReaders {
    /// Whether to start readers: the first ones, or the successors of cuFile's after a refused read.
    fn is_wanted(&self, context: &ReadContext<'_>) -> bool {
        let refused = context.cufile.get().is_some_and(|cufile| cufile.is_refused());
        self.readers.is_none() && (self.cufile.is_none() || refused)
    }
}

fn cancelled(context: &ReadContext<'_>, done_bytes: u64) -> Error {
    Error::Cancelled { done_bytes, total_bytes: context.scatter.plan.bytes }
}

/// The queues of direct readers, one each, their backend, and the reason for it.
#[allow(clippy::type_complexity, reason = "used once")]
fn direct_queues(context: &ReadContext<'_>) -> Result<(Vec<Box<dyn Queue>>, BackendKind, String)> {
    // Takes room for the first slots of each reader. Room for one reader is always available.
    let room = |readers: usize| {
        let others = (1..readers).take_while(|_| context.budget.take(FIRST_SLOTS)).count();
        context.budget.take(FIRST_SLOTS);
        1 + others
    };
    let slots = context.tuning.direct_slots;
    let mut why = "what is not cached comes quickest past the cache".to_owned();
    let distrust = match context.tuning.backend {
        Backend::Auto => context.routes.distrust(),
        // Opening a file that must not be read is an error.
        Backend::Require(_) => None,
    };
    if let Some(reason) = distrust {
        tracing::debug!(reason);
        why = reason;
    } else if context.tuning.backend != Backend::Require(BackendKind::Direct) {
        let rings = room(context.tuning.rings);
        let depth = (slots / rings).max(FIRST_SLOTS);
        let queues: io::Result<Vec<_>> = (0..rings).map(|_| context.engines.uring.queue(depth)).collect();
        match queues {
            Ok(queues) => return Ok((queues, BackendKind::IoUring, why)),
            Err(error) if context.tuning.backend == Backend::Auto => {
                why = format!("io_uring is refused: {}", refusal_of_queue(BackendKind::IoUring, &error));
                tracing::debug!(%error, "no io_uring");
            }
            Err(error) => return Err(context.queue_refused(BackendKind::IoUring, &error)),
        }
    }
    // One read in flight each. More readers than a ring's first reads in flight: their number cannot be
    // raised later.
    let most = (2 * queue_depth::FIRST_BYTES / context.tuning.job_bytes).max(4) as usize;
    let readers = room((slots / FIRST_SLOTS).min(most).min(context.scatter.plan.jobs.len()));
    let queues: io::Result<Vec<_>> = (0..readers).map(|_| context.engines.direct.queue(1)).collect();
    let queues = queues.map_err(|error| context.queue_refused(BackendKind::Direct, &error))?;
    Ok((queues, BackendKind::Direct, why))
}

/// The reader threads of a load.
struct ReaderThreads<'scope, 'env> {
    context: &'scope ReadContext<'scope>,
    job_queue: &'scope JobQueue<'scope>,
    scope: &'scope Scope<'scope, 'env>,
    started: usize,
}

impl<'scope> ReaderThreads<'scope, '_> {
    fn start_buffered(&mut self, readers: usize) {
        let (context, job_queue) = (self.context, self.job_queue);
        let readers = (0..readers).map(|_| move || buffered_reader::run(context, job_queue));
        self.start(ReaderKind::Buffered, readers);
    }

    /// Reads through the page cache on this thread: starting another one takes longer than a single job.
    fn read_here(&mut self) {
        let (context, job_queue) = (self.context, self.job_queue);
        job_queue.begin(ReaderKind::Buffered);
        run_reader(context, job_queue, ReaderKind::Buffered, || buffered_reader::run(context, job_queue));
        self.started += 1;
    }

    /// Starts direct readers, cuFile's if it is available, and records their backend.
    fn start_direct(&mut self, direct: &mut DirectReaders) {
        let (context, job_queue) = (self.context, self.job_queue);
        let mut skipped = None;
        if !direct.tried_cufile {
            direct.tried_cufile = true;
            match cufile_setup::open(context) {
                Ok(CuFileDecision::Use(readers)) => {
                    let CuFileReaders { session, queues, why } = *readers;
                    let session = context.cufile.get_or_init(|| session);
                    let readers = queues
                        .into_iter()
                        .map(|queue| move || direct_reader::run(context, job_queue, queue, Some(session)));
                    direct.cufile = Some(why);
                    return self.start(ReaderKind::CuFile, readers);
                }
                Ok(CuFileDecision::Skip(why)) => skipped = why,
                Err(error) => return job_queue.fail(error),
            }
        }
        if direct.cufile.is_some() {
            cufile_setup::leave_room(context);
        }
        match direct_queues(context) {
            Ok((queues, kind, mut why)) => {
                if direct.cufile.is_some() {
                    why = format!("cuFile refused reads; {why}");
                } else if let Some(skipped) = skipped {
                    why = format!("not by cuFile: {skipped}; {why}");
                }
                let readers = queues
                    .into_iter()
                    .map(|queue| move || direct_reader::run(context, job_queue, queue, None));
                direct.readers = Some((kind, why));
                self.start(ReaderKind::Direct, readers);
            }
            Err(error) => job_queue.fail(error),
        }
    }

    /// Starts readers. Starting fewer than planned only costs speed; starting none is a failure.
    fn start<R: FnOnce() -> Result<()> + Send + 'scope>(
        &mut self,
        kind: ReaderKind,
        readers: impl Iterator<Item = R>,
    ) {
        let (context, job_queue) = (self.context, self.job_queue);
        for (count, read) in readers.enumerate() {
            let run = move || run_reader(context, job_queue, kind, read);
            job_queue.begin(kind);
            let thread = thread::Builder::new().name(format!("tensorhold-{}", self.started));
            if let Err(source) = thread.spawn_scoped(self.scope, run) {
                job_queue.end(kind);
                tracing::warn!(%source, threads = self.started, "the system refused a reader thread");
                if count == 0 {
                    job_queue.fail(Error::Thread { source });
                }
                return;
            }
            self.started += 1;
        }
    }
}

/// Runs a registered reader, and unregisters it.
fn run_reader(
    context: &ReadContext<'_>,
    job_queue: &JobQueue<'_>,
    kind: ReaderKind,
    read: impl FnOnce() -> Result<()>,
) {
    if let Err(error) = caught("read", read) {
        job_queue.fail(error);
        // Others may wait for its part of a slot, or for a task that it has taken on.
        context.ring.iter().for_each(|ring| ring.wake());
    }
    job_queue.end(kind);
}

/// Calls code from outside this crate. A panic becomes an error.
fn caught<T>(operation: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let message = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast_ref::<&str>().map_or("no message", |message| *message).to_owned(),
    };
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Error::Panicked { operation, message: message(panic) }))
}

/// Reports progress to the callback.
struct ProgressReporter<'a> {
    callback: Option<&'a mut Callback>,
    total_bytes: u64,
    tensors: usize,
    last: Option<u64>,
}

impl ProgressReporter<'_> {
    /// Whether the callback has not been called with this number of bytes.
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
