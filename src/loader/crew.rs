//! The readers of a load: starting them, waiting for them, and telling the caller how far they are.
//!
//! Readers [`through`] the page cache take jobs off the plan; what is not cached they leave to readers [`past`] it, which are
//! started when there is something to do.
//!
//! Readers call code from outside this crate: drivers, streams and memories. One that panics ends its reader with an error. The callback's panic goes on to
//! whoever called the load, but not before all readers have ended and what they enqueued has ended (W2).

use std::any::Any;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::{self, Scope};

use super::depth;
use super::fill::{Fill, refusal_of_queue};
use super::gds::{self, Answer};
use super::lane::FIRST_SLOTS;
use super::past;
use super::progress::{Callback, Progress};
use super::through;
use super::work::{Arrivals, Control, Role, Work};
use crate::error::{Error, Result};
use crate::io::{Backend, BackendKind, Queue};
use crate::report::Stages;

/// How a fill went.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) threads: usize,
    /// Bytes read through the page cache, past it, and by cuFile.
    pub(super) through_bytes: u64,
    pub(super) past_bytes: u64,
    pub(super) gds_bytes: u64,
    pub(super) stages: Stages,
    /// What read past it, if anything did, and why it was that.
    pub(super) past: Option<(BackendKind, String)>,
    /// How cuFile read, if it did.
    pub(super) gds: Option<String>,
}

/// Why a fill failed.
#[derive(Debug)]
pub(super) struct Unfilled {
    pub(super) error: Error,
    /// Staging memory was refused: smaller slots may do.
    pub(super) for_staging: bool,
}

/// Stops the load's threads if the callback panics, so that a scope can join them.
pub(super) struct StopOnPanic<'a>(pub(super) &'a Control);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

/// Runs all jobs.
///
/// The callback is called on this thread: before the first byte, as bytes arrive, and at the end.
pub(super) fn run(
    fill: &Fill<'_>,
    callback: Option<&mut Callback>,
    control: &Control,
    arrivals: Option<&Arrivals>,
) -> Result<Filled, Unfilled> {
    let jobs = fill.landing.plan.jobs.len();
    let only_past = matches!(fill.readers.backend, Backend::Require(kind) if kind != BackendKind::Buffered);
    let tells = callback.is_some();
    let work = Work::new(fill.landing.plan, control, arrivals, only_past, (thread::current(), tells));
    let total_bytes = fill.landing.plan.bytes;
    let mut report = Reporter { callback, total_bytes, tensors: fill.tensors, last: None };
    let unfilled = |error| Unfilled { error, for_staging: false };
    if report.tell(0).is_break() {
        return Err(unfilled(cancelled(fill, 0)));
    }
    let mut past = Past::default();
    let crew = || {
        thread::scope(|scope| {
            let _stop = StopOnPanic(control);
            let mut threads = Threads { fill, work: &work, scope, started: 0 };
            if only_past {
                threads.start_past(&mut past);
            } else {
                if jobs > 1 {
                    threads.start_through(fill.readers.threads.min(jobs));
                }
                if let Some(ring) = &fill.ring {
                    ring.let_grow();
                }
                if jobs == 1 {
                    threads.read_here();
                }
            }
            loop {
                // Asked before what they leave: a reader that has ended leaves nothing more.
                let idle = work.is_idle();
                if work.wants_past() && past.is_wanted(fill) && !control.is_stopped() {
                    threads.start_past(&mut past);
                    continue;
                }
                if idle {
                    break;
                }
                let done = work.landed_bytes();
                if !report.is_news(done) {
                    thread::park();
                } else if report.tell(done).is_break() {
                    work.fail(cancelled(fill, done));
                    report.callback = None;
                }
            }
            threads.started
        })
    };
    let threads = catch_unwind(AssertUnwindSafe(crew));
    // Also after a failure or a panic: what has been enqueued ends before the load returns or unwinds (W2).
    if let Some(Err(error)) = fill.ring.as_ref().map(|ring| caught("wait for copies", || ring.drain(&work))) {
        work.fail(error);
    }
    let threads = threads.unwrap_or_else(|panic| resume_unwind(panic));
    if let Some(error) = work.failure() {
        return Err(unfilled(error));
    }
    let done = work.landed_bytes();
    if done < total_bytes && !control.is_stopped() {
        // No reader was left.
        let error = work.refusal().unwrap_or_else(|| cancelled(fill, done));
        return Err(Unfilled { error, for_staging: done == 0 });
    }
    let breaks = report.is_news(done) && report.tell(done).is_break();
    if breaks || done < total_bytes {
        return Err(unfilled(cancelled(fill, done)));
    }
    let [through_bytes, past_bytes, gds_bytes] = work.counted();
    let stages = fill.totals.mean();
    let Past { usual: past, gds, .. } = past;
    Ok(Filled { threads, through_bytes, past_bytes, gds_bytes, stages, past, gds })
}

/// What reads past the page cache.
#[derive(Debug, Default)]
struct Past {
    /// The usual readers, once they have been started, and why it is those.
    usual: Option<(BackendKind, String)>,
    /// Whether cuFile was asked for.
    asked_gds: bool,
    /// How cuFile reads, if it does.
    gds: Option<String>,
}

impl Past {
    /// Whether readers are to be started: the first, or others than those by cuFile, which has refused a read.
    fn is_wanted(&self, fill: &Fill<'_>) -> bool {
        let refused = fill.gds.get().is_some_and(|gds| gds.is_refused());
        self.usual.is_none() && (self.gds.is_none() || refused)
    }
}

fn cancelled(fill: &Fill<'_>, done_bytes: u64) -> Error {
    Error::Cancelled { done_bytes, total_bytes: fill.landing.plan.bytes }
}

/// Queues of reads past the page cache, one for each reader, and what they are.
#[allow(clippy::type_complexity, reason = "used once")]
fn past_queues(fill: &Fill<'_>) -> Result<(Vec<Box<dyn Queue>>, BackendKind, String)> {
    // Room for its first slots is taken for each reader here; the first finds it always.
    let room = |readers: usize| {
        let others = (1..readers).take_while(|_| fill.budget.take(FIRST_SLOTS)).count();
        fill.budget.take(FIRST_SLOTS);
        1 + others
    };
    let slots = fill.readers.past_slots;
    let mut why = "what is not cached comes quickest past the cache".to_owned();
    let distrust = match fill.readers.backend {
        Backend::Auto => fill.routes.distrust(),
        // A file that must not be read is an error when it is opened.
        Backend::Require(_) => None,
    };
    if let Some(reason) = distrust {
        tracing::debug!(reason);
        why = reason;
    } else if fill.readers.backend != Backend::Require(BackendKind::Direct) {
        let rings = room(fill.readers.rings);
        let depth = (slots / rings).max(FIRST_SLOTS);
        let queues: io::Result<Vec<_>> = (0..rings).map(|_| fill.engines.uring.queue(depth)).collect();
        match queues {
            Ok(queues) => return Ok((queues, BackendKind::IoUring, why)),
            Err(error) if fill.readers.backend == Backend::Auto => {
                why = format!("io_uring is refused: {}", refusal_of_queue(BackendKind::IoUring, &error));
                tracing::debug!(%error, "no io_uring");
            }
            Err(error) => return Err(fill.queue_refused(BackendKind::IoUring, &error)),
        }
    }
    // One read at a time each, and more of those than a ring begins with: they cannot be tried.
    let most = (2 * depth::FIRST_BYTES / fill.readers.job_bytes).max(4) as usize;
    let readers = room((slots / FIRST_SLOTS).min(most).min(fill.landing.plan.jobs.len()));
    let queues: io::Result<Vec<_>> = (0..readers).map(|_| fill.engines.direct.queue(1)).collect();
    let queues = queues.map_err(|error| fill.queue_refused(BackendKind::Direct, &error))?;
    Ok((queues, BackendKind::Direct, why))
}

/// Starts readers.
struct Threads<'scope, 'env> {
    fill: &'scope Fill<'scope>,
    work: &'scope Work<'scope>,
    scope: &'scope Scope<'scope, 'env>,
    started: usize,
}

impl<'scope> Threads<'scope, '_> {
    fn start_through(&mut self, readers: usize) {
        let (fill, work) = (self.fill, self.work);
        let readers = (0..readers).map(|_| move || through::read(fill, work));
        self.start(Role::Through, readers);
    }

    /// Reads through the page cache on this thread: another one takes longer to start than a single job does.
    fn read_here(&mut self) {
        let (fill, work) = (self.fill, self.work);
        work.begin(Role::Through);
        run_reader(fill, work, Role::Through, || through::read(fill, work));
        self.started += 1;
    }

    /// Starts the readers past the page cache, and notes what they are: by cuFile, if it is there for that.
    fn start_past(&mut self, past: &mut Past) {
        let (fill, work) = (self.fill, self.work);
        let mut not = None;
        if !past.asked_gds {
            past.asked_gds = true;
            match gds::open(fill) {
                Ok(Answer::Reads(readers)) => {
                    let gds::Readers { load, queues, why } = *readers;
                    let load = fill.gds.get_or_init(|| load);
                    let readers =
                        queues.into_iter().map(|queue| move || past::read(fill, work, queue, Some(load)));
                    past.gds = Some(why);
                    return self.start(Role::ByCuFile, readers);
                }
                Ok(Answer::Not(why)) => not = why,
                Err(error) => return work.fail(error),
            }
        }
        if past.gds.is_some() {
            gds::leave_room(fill);
        }
        match past_queues(fill) {
            Ok((queues, kind, mut why)) => {
                if past.gds.is_some() {
                    why = format!("cuFile refused reads; {why}");
                } else if let Some(not) = not {
                    why = format!("not by cuFile: {not}; {why}");
                }
                let readers = queues.into_iter().map(|queue| move || past::read(fill, work, queue, None));
                past.usual = Some((kind, why));
                self.start(Role::Past, readers);
            }
            Err(error) => work.fail(error),
        }
    }

    /// Starts readers. Fewer than there could be are slower; none is a failure.
    fn start<R: FnOnce() -> Result<()> + Send + 'scope>(
        &mut self,
        role: Role,
        readers: impl Iterator<Item = R>,
    ) {
        let (fill, work) = (self.fill, self.work);
        for (count, read) in readers.enumerate() {
            let run = move || run_reader(fill, work, role, read);
            work.begin(role);
            let thread = thread::Builder::new().name(format!("tensorhold-{}", self.started));
            if let Err(source) = thread.spawn_scoped(self.scope, run) {
                work.end(role);
                tracing::warn!(%source, threads = self.started, "the system refused a reader thread");
                if count == 0 {
                    work.fail(Error::Thread { source });
                }
                return;
            }
            self.started += 1;
        }
    }
}

/// Runs a reader that has been counted in, and counts it out.
fn run_reader(fill: &Fill<'_>, work: &Work<'_>, role: Role, read: impl FnOnce() -> Result<()>) {
    if let Err(error) = caught("read", read) {
        work.fail(error);
        // Its part of a slot will not come, and what it said that it would do is not done.
        fill.ring.iter().for_each(|ring| ring.wake());
    }
    work.end(role);
}

/// Does something that calls code from outside this crate, whose panic becomes an error.
fn caught<T>(operation: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let message = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast_ref::<&str>().map_or("no message", |message| *message).to_owned(),
    };
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Error::Panicked { operation, message: message(panic) }))
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
