//! [`Batches`]: a load in batches, each of which is read while the consumer works on the one before.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tensorhold_allocator::Pool;

use super::batching::{BatchPlan, Batching, describe, items, schedule};
use super::checkpoint::{Checkpoint, estimate};
use super::options::Options;
use super::parallel::is_current;
use super::pools::shared;
use super::progress::{Callback, Progress};
use super::setup::LoadSetup;
use crate::error::{Error, Result};
use crate::fork::OfProcess;
use crate::loader::metadata::PendingMetadata;
use crate::loader::pipeline::LoadControl;
use crate::loader::plan::{BatchSchedule, LayoutOptions};
use crate::report::Choice;
use crate::weights::Weights;

/// The tensors of a load in batches: an iterator over [`Weights`], in the order of the files; see
/// [`Loader::batches`](crate::Loader::batches).
///
/// An error is the last item. Dropping the iterator stops the reads and frees the batches that it has not
/// returned; returned batches stay. If the progress callback panics, so does the next call of `next`. The
/// callback cannot wait for its own load: a call of `next` there stops the load and ends the iterator. In a
/// forked child, the iterator returns an error and ends, and its drop does nothing.
pub struct Batches {
    plan: BatchPlan,
    pool: Pool,
    /// The next batch has been requested, and has not been returned yet.
    is_requested: bool,
    /// `None` once the thread has been joined.
    running: Option<OfProcess<BatchThread>>,
}

/// The thread of the load, and the state that it shares with the iterator.
struct BatchThread {
    /// Each message permits the thread to read one more batch. `None` once no more are needed.
    permits: Option<Sender<()>>,
    loaded: Receiver<Result<Weights>>,
    control: Arc<LoadControl>,
    thread: JoinHandle<()>,
}

impl Batches {
    /// Plans the batches and starts to read.
    ///
    /// # Errors
    /// When not even single tensors fit, or an option or pool is invalid.
    pub(super) fn start(
        checkpoint: Checkpoint,
        batching: &Batching,
        callback: Option<Callback>,
    ) -> Result<Self> {
        let mut options = checkpoint.options().clone();
        let items = items(&checkpoint, &batching.keep)?;
        let schedule = schedule(&checkpoint, &options, batching, &items)?;
        let pool = match shared("pool", options.pool.as_ref(), &*checkpoint.device().memory())? {
            Some(pool) => pool,
            None => own_pool(&checkpoint, options.memory_budget, batching.even, &schedule)?,
        };
        options.pool = Some(pool.clone());
        let plan = describe(&items, batching, &schedule);
        let (permits, permitted) = mpsc::channel();
        let (sender, loaded) = mpsc::channel();
        for _ in 0..schedule.ahead {
            let _ = permits.send(());
        }
        let control = Arc::<LoadControl>::default();
        let even_bytes = if batching.even { schedule.longest_bytes } else { 0 };
        let mut reader = BatchReader {
            scratch_bytes: options.memory_budget.map(|budget| budget.saturating_sub(schedule.peak_bytes)),
            checkpoint,
            options,
            kept: items.iter().map(|item| item.kept).collect(),
            even_bytes,
            control: Arc::clone(&control),
            progress: callback.map(|callback| BatchProgress::new(callback, &plan)),
            choices: plan.choices.clone(),
            done_bytes: 0,
            total_bytes: plan.bytes,
        };
        let read = move || reader.read(schedule.batches, &permitted, &sender);
        let thread = thread::Builder::new().name("tensorhold-batches".into());
        let thread = thread.spawn(read).map_err(|source| Error::Thread { source })?;
        let running = Some(OfProcess::new(BatchThread { permits: Some(permits), loaded, control, thread }));
        Ok(Self { plan, pool, is_requested: false, running })
    }

    /// The plan of the batches.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }

    /// The pool that holds the batches.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Waits up to `timeout` for the item of [`next`](Iterator::next); `None` if it does not arrive in time,
    /// and a later call returns it. For callers that do other work while they wait. As with `next`, the first
    /// call declares the previous batch as done.
    pub fn next_within(&mut self, timeout: Duration) -> Option<Option<Result<Weights>>> {
        let Some(running) = self.request() else { return Some(self.end()) };
        match running.loaded.recv_timeout(timeout) {
            Err(RecvTimeoutError::Timeout) => None,
            Ok(Ok(batch)) => Some(self.give(batch)),
            Ok(Err(error)) => Some(self.end().or(Some(Err(error)))),
            Err(RecvTimeoutError::Disconnected) => Some(self.end()),
        }
    }

    /// Permits one more batch to be read, once for each batch that is returned. `None` if there are no more.
    fn request(&mut self) -> Option<&BatchThread> {
        let running = self.running.as_ref()?.get().filter(|running| !is_current(&running.thread))?;
        let permits = running.permits.as_ref()?;
        if !self.is_requested {
            // A thread that has ended takes no permits: there are no more batches.
            let _ = permits.send(());
            self.is_requested = true;
        }
        Some(running)
    }

    fn give(&mut self, batch: Weights) -> Option<Result<Weights>> {
        self.is_requested = false;
        Some(Ok(batch))
    }

    /// Joins the thread, which has ended or is about to. Returns an error in a forked child, which does not
    /// have the thread.
    fn end(&mut self) -> Option<Result<Weights>> {
        if let Some(running) = self.running.as_mut()?.get_mut().filter(|running| is_current(&running.thread))
        {
            running.control.stop();
            running.permits = None;
            return None;
        }
        let Some(BatchThread { permits, thread, .. }) = self.running.take()?.into_inner() else {
            return Some(Err(Error::Forked { operation: "wait for a batch of tensors" }));
        };
        drop(permits);
        if let Err(panic) = thread.join() {
            // A panic of the caller's callback propagates to the caller.
            std::panic::resume_unwind(panic);
        }
        None
    }
}

impl Iterator for Batches {
    type Item = Result<Weights>;

    fn next(&mut self) -> Option<Result<Weights>> {
        let Some(running) = self.request() else { return self.end() };
        match running.loaded.recv() {
            Ok(Ok(batch)) => self.give(batch),
            Ok(Err(error)) => self.end().or(Some(Err(error))),
            Err(_) => self.end(),
        }
    }
}

impl FusedIterator for Batches {}

impl Drop for Batches {
    fn drop(&mut self) {
        let running = self.running.take().and_then(OfProcess::into_inner);
        let Some(BatchThread { permits, loaded, control, thread }) = running else { return };
        control.stop();
        drop(permits);
        if !is_current(&thread) {
            // I4: all reads in flight have ended when this returns.
            let _ = thread.join();
            drop(loaded);
            self.pool.trim();
        }
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// A pool for the batches of one load. The budget is its limit: a consumer that keeps more than it declared
/// gets an error.
fn own_pool(
    checkpoint: &Checkpoint,
    budget: Option<u64>,
    even: bool,
    schedule: &BatchSchedule,
) -> Result<Pool> {
    let device = checkpoint.device();
    let pool = Pool::builder(device.memory()).name(format!("batches for {device}"));
    let pool = match budget {
        Some(budget) => pool.limit_bytes(budget),
        None => pool,
    };
    Ok(if even { pool.retain_bytes(schedule.peak_bytes) } else { pool }.build()?)
}

/// Reads batches, one after the other.
struct BatchReader {
    checkpoint: Checkpoint,
    options: Options,
    /// By tensor.
    kept: Vec<bool>,
    /// The least length of each region, in bytes.
    even_bytes: u64,
    /// The part of the budget for memory other than tensors, in bytes.
    scratch_bytes: Option<u64>,
    control: Arc<LoadControl>,
    progress: Option<BatchProgress>,
    /// The choices of the plan, for the report of each batch.
    choices: Vec<Choice>,
    /// Bytes of the batches that have been started.
    done_bytes: u64,
    /// Bytes of all batches.
    total_bytes: u64,
}

impl BatchReader {
    fn read(
        &mut self,
        batches: Vec<Range<usize>>,
        permitted: &Receiver<()>,
        sender: &Sender<Result<Weights>>,
    ) {
        for batch in batches {
            if permitted.recv().is_err() {
                return;
            }
            let loaded = self.load(batch);
            let failed = loaded.is_err();
            if sender.send(loaded).is_err() || failed {
                return;
            }
        }
    }

    fn load(&mut self, batch: Range<usize>) -> Result<Weights> {
        let kept = self.kept.get(batch.clone()).unwrap_or_default();
        let mut files = self.checkpoint.files_of(batch);
        let estimate = estimate(&files);
        let metadata = PendingMetadata::take(&mut files, Vec::new(), None)?;
        let setup = LoadSetup::new(self.checkpoint.device(), &self.options, estimate)?;
        // In shared regions, a batch would keep the memory of others reserved, which the plan does not
        // account for. Even regions are never shared.
        let (min_region_bytes, separate) = (self.even_bytes, self.even_bytes == 0);
        let layout_options =
            LayoutOptions { kept, min_region_bytes, separate, scratch_bytes: self.scratch_bytes };
        let (mut load, reserved) = setup.plan(files, metadata, layout_options)?;
        load.control = Arc::clone(&self.control);
        load.left_out = Arc::clone(self.checkpoint.shared_left_out());
        load.tuning.choices.extend(self.choices.iter().cloned());
        let before = self.done_bytes;
        self.done_bytes += load.layout.bytes();
        let mut callback = self.progress.as_ref().map(|progress| progress.of_batch(before));
        load.load(reserved, callback.as_mut()).map_err(|error| match error {
            Error::Cancelled { done_bytes, .. } => {
                Error::Cancelled { done_bytes: before + done_bytes, total_bytes: self.total_bytes }
            }
            other => other,
        })
    }
}

/// Reports the progress of all batches to the caller's callback as that of one load.
struct BatchProgress {
    /// With the number of bytes of its last call.
    callback: Arc<Mutex<(Callback, Option<u64>)>>,
    total_bytes: u64,
    tensors: usize,
}

impl BatchProgress {
    fn new(callback: Callback, plan: &BatchPlan) -> Self {
        let callback = Arc::new(Mutex::new((callback, None)));
        Self { callback, total_bytes: plan.bytes, tensors: plan.tensors }
    }

    /// The callback for a batch that follows `before` bytes of other batches.
    fn of_batch(&self, before: u64) -> Callback {
        let Self { callback, total_bytes, tensors } = self;
        let (callback, total_bytes, tensors) = (Arc::clone(callback), *total_bytes, *tensors);
        Box::new(move |batch| {
            let mut callback = callback.lock().unwrap_or_else(PoisonError::into_inner);
            let (report, last) = &mut *callback;
            let done_bytes = before + batch.done_bytes;
            // The start of a batch equals the end of the one before: it is reported once.
            match last.replace(done_bytes) == Some(done_bytes) {
                true => ControlFlow::Continue(()),
                false => report(&Progress { done_bytes, total_bytes, tensors }),
            }
        })
    }
}
