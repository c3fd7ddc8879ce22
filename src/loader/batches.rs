//! [`Batches`]: a load in parts, each of which is read while the consumer works on the one before.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use tensorhold_allocator::{Bytes, Pool};

use super::batch::Placing;
use super::beside::is_own;
use super::budget;
use super::checkpoint::{Checkpoint, likely};
use super::described::Told;
use super::fit::{self, Fit, Item, Wish};
use super::options::Options;
use super::prepare::{Begun, shared};
use super::progress::{Callback, Progress};
use super::rule::Rule;
use super::work::Control;
use crate::error::{Error, Result};
use crate::fork::OfProcess;
use crate::report::Choice;
use crate::tensor::TensorInfo;
use crate::weights::Weights;

/// How a load is divided into batches; see [`Loader::batches`](crate::Loader::batches).
#[must_use = "nothing is loaded in batches before a loader is asked for them"]
#[derive(Debug, Clone)]
pub struct Batching {
    max_batch_bytes: u64,
    ahead: usize,
    keep: Keep,
    even: bool,
}

/// Which tensors the consumer keeps.
#[derive(Debug, Clone)]
enum Keep {
    Nothing,
    All,
    Only(Rule<bool>),
}

/// Batches have at most so many bytes, by default: on a bus of 50 GB/s they take 20 ms, a multiple of what it takes to begin one.
const BATCH_BYTES: u64 = 1 << 30;

impl Default for Batching {
    fn default() -> Self {
        Self::new()
    }
}

impl Batching {
    /// Batches of at most 1 GiB, one of which is read ahead, and of which nothing is kept.
    pub fn new() -> Self {
        Self { max_batch_bytes: BATCH_BYTES, ahead: 1, keep: Keep::Nothing, even: false }
    }

    /// How many bytes of tensors a batch has at most. A larger tensor is a batch of its own.
    pub fn max_batch_bytes(mut self, bytes: u64) -> Self {
        self.max_batch_bytes = bytes;
        self
    }

    /// How many batches are read ahead of the one that the consumer has, at most. With 0, a batch is read when it is asked for. Default: 1.
    pub fn ahead(mut self, batches: usize) -> Self {
        self.ahead = batches;
        self
    }

    /// The consumer keeps all tensors. This matters only where a [`memory_budget`](crate::Loader::memory_budget) or a pool's limit is to be kept to. Default: it
    /// keeps none.
    pub fn keep_all(mut self) -> Self {
        self.keep = Keep::All;
        self
    }

    /// The consumer keeps the tensors that `keeps` accepts, and no others. Those of a batch lie in a region of their own, so that they keep no other
    /// memory reserved. Asked for each tensor before any tensor's bytes are read.
    pub fn keep(mut self, keeps: impl Fn(&TensorInfo) -> bool + Send + 'static) -> Self {
        self.keep = Keep::Only(Rule::new(keeps));
        self
    }

    /// Regions are all as long as the longest batch needs, and kept from one batch to the next, so that the device's memory is reserved once, and not
    /// divided. This is for consumers that keep nothing: with [`keep`](Self::keep) or [`keep_all`](Self::keep_all), the load is an error. Default: each batch
    /// has a region of its length, which goes with its tensors.
    pub fn even_regions(mut self) -> Self {
        self.even = true;
        self
    }
}

/// What was planned for a load in batches. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BatchPlan {
    /// How many batches there are.
    pub batches: usize,
    /// How many bytes of tensors a batch of several has at most.
    pub max_batch_bytes: u64,
    /// How many batches are read ahead.
    pub ahead: usize,
    /// Tensors in all batches.
    pub tensors: usize,
    /// Bytes of those tensors.
    pub bytes: u64,
    /// Bytes of those that the consumer keeps.
    pub kept_bytes: u64,
    /// The most device memory that the batches in flight and what the consumer keeps take at any time, if it keeps no more than it said.
    pub peak_bytes: u64,
    /// What was chosen, and why; also in the report of each batch.
    pub choices: Vec<Choice>,
}

/// The tensors of a load in batches: an iterator over [`Weights`], in the order of the files; see [`Loader::batches`](crate::Loader::batches).
///
/// An error is the last item. Dropping the iterator stops the reads and gives back what it has not given; what it has given stays. If the progress callback
/// panics, so does the next call of `next`. The callback cannot wait for its own load: asked there, the batches stop it and end. In a forked child, the
/// iterator gives an error and ends, and its drop does nothing.
pub struct Batches {
    plan: BatchPlan,
    pool: Pool,
    /// The next batch has been asked for, and has not been given yet.
    is_asked: bool,
    /// `None` once it has been waited for.
    running: Option<OfProcess<Running>>,
}

/// The load's thread, and what it shares with the iterator.
struct Running {
    /// Says that one more batch may be read; `None` once there is nothing more to ask for.
    permits: Option<Sender<()>>,
    loaded: Receiver<Result<Weights>>,
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

impl Batches {
    pub(super) fn start(
        checkpoint: Checkpoint,
        batching: &Batching,
        callback: Option<Callback>,
    ) -> Result<Self> {
        let mut options = checkpoint.options().clone();
        let items = items(&checkpoint, &batching.keep)?;
        let fit = fit(&checkpoint, &options, batching, &items)?;
        let pool = match shared("pool", options.pool.as_ref(), &*checkpoint.device().memory())? {
            Some(pool) => pool,
            None => own_pool(&checkpoint, options.memory_budget, batching.even, &fit)?,
        };
        options.pool = Some(pool.clone());
        let plan = describe(&items, batching, &fit);
        let (permits, permitted) = mpsc::channel();
        let (sender, loaded) = mpsc::channel();
        for _ in 0..fit.ahead {
            let _ = permits.send(());
        }
        let control = Arc::<Control>::default();
        let even_bytes = if batching.even { fit.longest_bytes } else { 0 };
        let mut reader = Reader {
            besides: options.memory_budget.map(|budget| budget.saturating_sub(fit.peak_bytes)),
            checkpoint,
            options,
            kept: items.iter().map(|item| item.kept).collect(),
            even_bytes,
            control: Arc::clone(&control),
            told: callback.map(|callback| ToldOfAll::new(callback, &plan)),
            choices: plan.choices.clone(),
            done_bytes: 0,
            total_bytes: plan.bytes,
        };
        let read = move || reader.read(fit.batches, &permitted, &sender);
        let thread = thread::Builder::new().name("tensorhold-batches".into());
        let thread = thread.spawn(read).map_err(|source| Error::Thread { source })?;
        let running = Some(OfProcess::new(Running { permits: Some(permits), loaded, control, thread }));
        Ok(Self { plan, pool, is_asked: false, running })
    }

    /// What was planned.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }

    /// The pool that the batches are in.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What [`next`](Iterator::next) gives, if that is there within so long; `None` if it is not, and then a later call gives it. For callers that look
    /// at other things while they wait. The first call says, as `next` does, that the batch before is done with.
    pub fn next_within(&mut self, patience: Duration) -> Option<Option<Result<Weights>>> {
        let Some(running) = self.ask() else { return Some(self.end()) };
        match running.loaded.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) => None,
            Ok(Ok(batch)) => Some(self.give(batch)),
            Ok(Err(error)) => Some(self.end().or(Some(Err(error)))),
            Err(RecvTimeoutError::Disconnected) => Some(self.end()),
        }
    }

    /// Lets one more batch be read, once for each that is given; `None` when there are no more.
    fn ask(&mut self) -> Option<&Running> {
        let running = self.running.as_ref()?.get().filter(|running| !is_own(&running.thread))?;
        let permits = running.permits.as_ref()?;
        if !self.is_asked {
            // What is not taken any more was for a batch that does not exist.
            let _ = permits.send(());
            self.is_asked = true;
        }
        Some(running)
    }

    fn give(&mut self, batch: Weights) -> Option<Result<Weights>> {
        self.is_asked = false;
        Some(Ok(batch))
    }

    /// Waits for the thread, which has ended or will soon. An error in a forked child, which does not have it.
    fn end(&mut self) -> Option<Result<Weights>> {
        if let Some(running) = self.running.as_mut()?.get_mut().filter(|running| is_own(&running.thread)) {
            running.control.stop();
            running.permits = None;
            return None;
        }
        let Some(Running { permits, thread, .. }) = self.running.take()?.into_inner() else {
            return Some(Err(Error::Forked { operation: "wait for a batch of tensors" }));
        };
        drop(permits);
        if let Err(panic) = thread.join() {
            // The caller's function panicked: so does its caller.
            std::panic::resume_unwind(panic);
        }
        None
    }
}

impl Iterator for Batches {
    type Item = Result<Weights>;

    fn next(&mut self) -> Option<Result<Weights>> {
        let Some(running) = self.ask() else { return self.end() };
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
        let Some(Running { permits, loaded, control, thread }) = running else { return };
        control.stop();
        drop(permits);
        if !is_own(&thread) {
            // I4: what is in flight has ended when this returns.
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

/// The tensors in the order of the files, as they will be.
fn items(checkpoint: &Checkpoint, keep: &Keep) -> Result<Vec<Item>> {
    let kept = |info: &TensorInfo| match keep {
        Keep::Nothing => Ok(false),
        Keep::All => Ok(true),
        Keep::Only(rule) => rule.of(info),
    };
    checkpoint.tensors().map(|info| Ok(Item { bytes: info.nbytes, kept: kept(info)? })).collect()
}

/// Plans batches within the budget, and what the pool has left.
fn fit(checkpoint: &Checkpoint, options: &Options, batching: &Batching, items: &[Item]) -> Result<Fit> {
    if batching.even && !matches!(batching.keep, Keep::Nothing) {
        return Err(Error::Option {
            option: "even_regions",
            got: "a consumer that keeps tensors, and so the regions".into(),
            expected: "one that keeps nothing".into(),
            remedy: "leave one of the two out".into(),
        });
    }
    let in_pool =
        options.pool.as_ref().and_then(|pool| Some((room_of(pool)?, "what the pool's limit leaves")));
    let budget = options.memory_budget.map(|bytes| (bytes, "memory_budget"));
    let room = budget.into_iter().chain(in_pool).min_by_key(|(bytes, _)| *bytes);
    let (max_batch_bytes, ahead, even) = (batching.max_batch_bytes, batching.ahead, batching.even);
    let unit = options.pool.as_ref().map_or(1, budget::unit);
    let wish = Wish { max_batch_bytes, ahead, even, unit, room: room.map(|(bytes, _)| bytes) };
    fit::fit(items, wish).map_err(|short| {
        let tensor = checkpoint.tensors().nth(short.tensor);
        let (budget, limit) = room.unwrap_or((u64::MAX, "memory"));
        Error::InfeasibleBudget {
            limit,
            budget,
            needed: short.needed,
            tensor: tensor.map_or_else(String::new, |info| info.name.to_string()),
            bytes: tensor.map_or(0, |info| info.nbytes),
            kept: short.kept,
            largest: budget::largest(checkpoint.tensors()),
        }
    })
}

/// How much a pool's limit leaves, if it has one: what others have placed there is taken, whole regions of it.
fn room_of(pool: &Pool) -> Option<u64> {
    let limit = pool.limit_bytes()?;
    // What has been dropped is given back first.
    pool.trim_to(u64::MAX);
    let snapshot = pool.snapshot();
    let taken = snapshot.regions.iter().filter(|region| !region.fragments.is_empty());
    Some(limit.saturating_sub(taken.map(|region| region.reserved_bytes).sum()))
}

/// A pool for the batches of one load. It has the budget for a limit: a consumer that keeps more than it said is told.
fn own_pool(checkpoint: &Checkpoint, budget: Option<u64>, even: bool, fit: &Fit) -> Result<Pool> {
    let device = checkpoint.device();
    let pool = Pool::builder(device.memory()).name(format!("batches for {device}"));
    let pool = match budget {
        Some(budget) => pool.limit_bytes(budget),
        None => pool,
    };
    Ok(if even { pool.retain_bytes(fit.peak_bytes) } else { pool }.build()?)
}

fn describe(items: &[Item], batching: &Batching, fit: &Fit) -> BatchPlan {
    let Fit { batches, max_batch_bytes, ahead, peak_bytes, .. } = fit;
    let why = match (*max_batch_bytes, *ahead) == (batching.max_batch_bytes, batching.ahead) {
        true => "as asked".to_owned(),
        false => format!(
            "of {} with {} ahead, as asked, there is no room for, or there are fewer",
            Bytes(batching.max_batch_bytes),
            batching.ahead
        ),
    };
    let picked = format!("of at most {} with {ahead} ahead", Bytes(*max_batch_bytes));
    BatchPlan {
        batches: batches.len(),
        max_batch_bytes: *max_batch_bytes,
        ahead: *ahead,
        tensors: items.len(),
        bytes: items.iter().map(|item| item.bytes).fold(0, u64::saturating_add),
        kept_bytes: items.iter().filter(|item| item.kept).map(|item| item.bytes).fold(0, u64::saturating_add),
        peak_bytes: *peak_bytes,
        choices: vec![Choice { about: "batches", picked, why }],
    }
}

/// Reads one batch after the other.
struct Reader {
    checkpoint: Checkpoint,
    options: Options,
    /// By tensor.
    kept: Vec<bool>,
    /// How long each region is at least.
    even_bytes: u64,
    /// What a budget leaves for what is no tensor's.
    besides: Option<u64>,
    control: Arc<Control>,
    told: Option<ToldOfAll>,
    /// What was chosen for all batches, for the report of each.
    choices: Vec<Choice>,
    /// Bytes of the batches that have been begun, and of all.
    done_bytes: u64,
    total_bytes: u64,
}

impl Reader {
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
        let mut files = self.checkpoint.some(batch);
        let likely = likely(&files);
        let told = Told::take(&mut files, Vec::new(), None)?;
        let begun = Begun::new(self.checkpoint.device(), &self.options, likely)?;
        // In regions that are there, a batch would keep others' memory reserved, which was not planned; even ones are all its own.
        let (region_bytes, apart) = (self.even_bytes, self.even_bytes == 0);
        let placing = Placing { kept, region_bytes, apart, besides: self.besides };
        let (mut run, reserved) = begun.plan(files, told, placing)?;
        run.control = Arc::clone(&self.control);
        run.left_out = Arc::clone(self.checkpoint.shared_left_out());
        run.readers.choices.extend(self.choices.iter().cloned());
        let before = self.done_bytes;
        self.done_bytes += run.batch.bytes();
        let mut callback = self.told.as_ref().map(|told| told.of_batch(before));
        run.load(reserved, callback.as_mut()).map_err(|error| match error {
            Error::Cancelled { done_bytes, .. } => {
                Error::Cancelled { done_bytes: before + done_bytes, total_bytes: self.total_bytes }
            }
            other => other,
        })
    }
}

/// Tells the caller's callback of all batches as of one load.
struct ToldOfAll {
    /// And how many bytes it was told of last.
    callback: Arc<Mutex<(Callback, Option<u64>)>>,
    total_bytes: u64,
    tensors: usize,
}

impl ToldOfAll {
    fn new(callback: Callback, plan: &BatchPlan) -> Self {
        let callback = Arc::new(Mutex::new((callback, None)));
        Self { callback, total_bytes: plan.bytes, tensors: plan.tensors }
    }

    /// What is told of the batch that comes after so many bytes.
    fn of_batch(&self, before: u64) -> Callback {
        let Self { callback, total_bytes, tensors } = self;
        let (callback, total_bytes, tensors) = (Arc::clone(callback), *total_bytes, *tensors);
        Box::new(move |batch| {
            let mut callback = callback.lock().unwrap_or_else(PoisonError::into_inner);
            let (tell, last) = &mut *callback;
            let done_bytes = before + batch.done_bytes;
            // A batch begins where the one before has ended.
            match last.replace(done_bytes) == Some(done_bytes) {
                true => ControlFlow::Continue(()),
                false => tell(&Progress { done_bytes, total_bytes, tensors }),
            }
        })
    }
}
