//! Filling: readers take jobs until none is left, or one of them fails, or the caller stops.
//!
//! Readers [`through`] the page cache take jobs off the plan; what is not cached they leave to readers [`past`] it, which are
//! started when there is something to do.
//!
//! # Invariants
//! - **W1** Each job is one reader's at a time, so each byte of a region is written by one thread at a time, and no one
//!   else knows the regions before they are published (I3).
//! - **W2** When [`Fill::run`] returns, in whatever way, every reader has ended and what it enqueued has ended too, or
//!   its device failed to say so; then the pool keeps the regions (I1).

use std::io;
use std::ops::ControlFlow;
use std::thread::{self, Scope};

use tensorhold_allocator::Pool;

use super::engines::Engines;
use super::headers::Opened;
use super::landing::Landing;
use super::lane::{Budget, FIRST_SLOTS, Lane};
use super::options::Readers;
use super::past;
use super::plan::{Extent, Job};
use super::progress::{Callback, Progress};
use super::ring::Ring;
use super::route::Routes;
use super::stopwatch::Totals;
use super::through;
use super::work::{Arrivals, Control, Work};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::{Backend, BackendKind, Queue};
use crate::report::Stages;

/// What is filled from what, and how.
pub(super) struct Fill<'a> {
    pub(super) landing: Landing<'a>,
    pub(super) extents: &'a [Extent],
    pub(super) files: &'a [Opened],
    pub(super) device: &'a Device,
    pub(super) readers: &'a Readers,
    pub(super) engines: &'a Engines,
    pub(super) routes: Routes<'a>,
    /// Where slots come from.
    pub(super) staging: &'a Pool,
    pub(super) budget: &'a Budget,
    /// Where readers through the page cache leave what the device copies; `None` where they read in place.
    pub(super) ring: Option<Ring<'a>>,
    pub(super) totals: Totals,
}

/// How a fill went.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) threads: usize,
    /// Bytes read through the page cache and past it.
    pub(super) through_bytes: u64,
    pub(super) past_bytes: u64,
    pub(super) stages: Stages,
    /// What read past it, if anything did, and why it was that.
    pub(super) past: Option<(BackendKind, String)>,
}

/// Why a fill failed.
#[derive(Debug)]
pub(super) struct Unfilled {
    pub(super) error: Error,
    /// Staging memory was refused: smaller slots may do.
    pub(super) for_staging: bool,
}

/// Stops the readers if the callback panics, so that the scope can join them.
struct StopOnDrop<'a>(&'a Control);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Fill<'_> {
    /// Runs all jobs.
    ///
    /// The callback is called on this thread: before the first byte, as bytes arrive, and at the end.
    pub(super) fn run(
        &self,
        callback: Option<&mut Callback>,
        control: &Control,
        arrivals: Option<&Arrivals>,
    ) -> Result<Filled, Unfilled> {
        let jobs = self.landing.plan.jobs.len();
        let only_past =
            matches!(self.readers.backend, Backend::Require(kind) if kind != BackendKind::Buffered);
        let tells = callback.is_some();
        let work = Work::new(
            (self.landing.plan, self.extents),
            control,
            arrivals,
            only_past,
            (thread::current(), tells),
        );
        let total_bytes = self.landing.plan.bytes;
        let mut report = Reporter { callback, total_bytes, tensors: self.extents.len(), last: None };
        let unfilled = |error| Unfilled { error, for_staging: false };
        if report.tell(0).is_break() {
            return Err(unfilled(self.cancelled(0)));
        }
        let mut past = None;
        let threads = thread::scope(|scope| {
            let _stop = StopOnDrop(control);
            let mut threads = Threads { fill: self, work: &work, scope, started: 0 };
            if only_past {
                past = threads.start_past();
            } else {
                threads.start_through(self.readers.threads.min(jobs));
            }
            loop {
                // Asked before what they leave: a reader that has ended leaves nothing more.
                let idle = work.is_idle();
                if work.wants_past() && past.is_none() && !control.is_stopped() {
                    past = threads.start_past();
                    continue;
                }
                if idle {
                    break;
                }
                let done = work.landed_bytes();
                if !report.is_news(done) {
                    thread::park();
                } else if report.tell(done).is_break() {
                    work.fail(self.cancelled(done));
                    report.callback = None;
                }
            }
            threads.started
        });
        // Also after a failure: what has been enqueued ends before the load returns (W2).
        if let Some(Err(error)) = self.ring.as_ref().map(|ring| ring.drain(&work)) {
            work.fail(error);
        }
        if let Some(error) = work.failure() {
            return Err(unfilled(error));
        }
        let done = work.landed_bytes();
        if done < total_bytes && !control.is_stopped() {
            // No reader was left.
            let error = work.refusal().unwrap_or_else(|| self.cancelled(done));
            return Err(Unfilled { error, for_staging: done == 0 });
        }
        let breaks = report.is_news(done) && report.tell(done).is_break();
        if breaks || done < total_bytes {
            return Err(unfilled(self.cancelled(done)));
        }
        let (through_bytes, past_bytes) = work.counted();
        Ok(Filled { threads, through_bytes, past_bytes, stages: self.totals.mean(), past })
    }

    fn cancelled(&self, done_bytes: u64) -> Error {
        Error::Cancelled { done_bytes, total_bytes: self.landing.plan.bytes }
    }

    /// Opens a lane of at most so many slots; `None` when there is no memory for it, which is noted.
    pub(super) fn open_lane(&self, work: &Work<'_>, slots: usize) -> Result<Option<Lane<'_>>> {
        let staging = self.readers.lane(self.staging, self.budget, slots);
        match Lane::open(self.device, staging) {
            Ok(lane) => Ok(Some(lane)),
            Err(error @ Error::Memory(_)) => {
                work.refuse(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn in_place(&self) -> bool {
        self.device.is_host_accessible()
    }

    /// The error for a file that ends at `end`, before the job's bytes do.
    pub(super) fn cut_short(&self, job: &Job, end: u64) -> Error {
        let source = &self.files[job.file].source;
        source.changed(format!("it was cut short: {} bytes when opened, now it ends at {end}", source.len()))
    }

    /// Queues of reads past the page cache, one for each reader, and what they are.
    #[allow(clippy::type_complexity, reason = "used once")]
    fn past_queues(&self) -> Result<(Vec<Box<dyn Queue>>, BackendKind, String)> {
        // Room for its first slots is taken for each reader here; the first finds it always.
        let room = |readers: usize| {
            let others = (1..readers).take_while(|_| self.budget.take(FIRST_SLOTS)).count();
            self.budget.take(FIRST_SLOTS);
            1 + others
        };
        let slots = self.readers.past_slots;
        let mut why = "what is not cached comes quickest past the cache".to_owned();
        if self.readers.backend != Backend::Require(BackendKind::Direct) {
            let rings = room(self.readers.rings);
            let depth = (slots / rings).max(FIRST_SLOTS);
            let queues: io::Result<Vec<_>> = (0..rings).map(|_| self.engines.uring.queue(depth)).collect();
            match queues {
                Ok(queues) => return Ok((queues, BackendKind::IoUring, why)),
                Err(error) if self.readers.backend == Backend::Auto => {
                    why = format!("io_uring is refused: {error}");
                    tracing::debug!(%error, "no io_uring");
                }
                Err(error) => return Err(queue_refused(BackendKind::IoUring, &error)),
            }
        }
        let readers = room((slots / FIRST_SLOTS).min(self.landing.plan.jobs.len()));
        let queues: io::Result<Vec<_>> = (0..readers).map(|_| self.engines.direct.queue(1)).collect();
        let queues = queues.map_err(|error| queue_refused(BackendKind::Direct, &error))?;
        Ok((queues, BackendKind::Direct, why))
    }
}

/// The error for an engine that makes no queue.
pub(super) fn queue_refused(kind: BackendKind, error: &io::Error) -> Error {
    Error::Option {
        option: "backend",
        got: format!("{kind}, which the system refuses: {error}"),
        expected: "one that it has".into(),
        remedy: "use Backend::Auto",
    }
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
        self.start(true, readers);
    }

    /// Starts the readers past the page cache, and says what they are.
    fn start_past(&mut self) -> Option<(BackendKind, String)> {
        let (fill, work) = (self.fill, self.work);
        match fill.past_queues() {
            Ok((queues, kind, why)) => {
                let readers = queues.into_iter().map(|queue| move || past::read(fill, work, queue));
                self.start(false, readers);
                Some((kind, why))
            }
            Err(error) => {
                work.fail(error);
                None
            }
        }
    }

    /// Starts readers. Fewer than there could be are slower; none is a failure.
    fn start<R: FnOnce() -> Result<()> + Send + 'scope>(
        &mut self,
        feeds: bool,
        readers: impl Iterator<Item = R>,
    ) {
        let work = self.work;
        for (count, read) in readers.enumerate() {
            let run = move || {
                if let Err(error) = read() {
                    work.fail(error);
                }
                work.end(feeds);
            };
            work.begin(feeds);
            let thread = thread::Builder::new().name(format!("tensorhold-{}", self.started));
            if let Err(source) = thread.spawn_scoped(self.scope, run) {
                work.end(feeds);
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
