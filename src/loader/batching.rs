//! [`Batching`]: how a load is divided into batches, and [`BatchPlan`]: the result.

use serde::Serialize;
use tensorhold_allocator::{Bytes, Pool};

use super::checkpoint::Checkpoint;
use super::options::Options;
use crate::error::{Error, Result};
use crate::loader::plan::{self, BatchItem, BatchRequest, BatchSchedule, budget};
use crate::loader::transform::Rule;
use crate::report::Choice;
use crate::tensor::TensorInfo;

/// How a load is divided into batches; see [`Loader::batches`](crate::Loader::batches).
#[must_use = "nothing is loaded in batches before a loader is asked for them"]
#[derive(Debug, Clone)]
pub struct Batching {
    pub(super) max_batch_bytes: u64,
    pub(super) ahead: usize,
    pub(super) keep: Keep,
    pub(super) even: bool,
}

/// The tensors that the consumer keeps.
#[derive(Debug, Clone)]
pub(super) enum Keep {
    Nothing,
    All,
    Only(Rule<bool>),
}

/// The largest batch by default, in bytes. On a bus of 50 GB/s it takes 20 ms, many times the time to start a
/// batch.
const BATCH_BYTES: u64 = 1 << 30;

impl Default for Batching {
    fn default() -> Self {
        Self::new()
    }
}

impl Batching {
    /// Batches of at most 1 GiB. One is read ahead, and the consumer keeps none.
    pub fn new() -> Self {
        Self { max_batch_bytes: BATCH_BYTES, ahead: 1, keep: Keep::Nothing, even: false }
    }

    /// The most bytes of tensors in a batch. A larger tensor forms a batch of its own.
    pub fn max_batch_bytes(mut self, bytes: u64) -> Self {
        self.max_batch_bytes = bytes;
        self
    }

    /// The most batches that are read ahead of the consumer's. With 0, a batch is read when the consumer
    /// requests it. Default: 1.
    pub fn ahead(mut self, batches: usize) -> Self {
        self.ahead = batches;
        self
    }

    /// The consumer keeps all tensors. This matters only with a
    /// [`memory_budget`](crate::Loader::memory_budget) or a pool that has a limit. Default: it keeps none.
    pub fn keep_all(mut self) -> Self {
        self.keep = Keep::All;
        self
    }

    /// The consumer keeps the tensors that `keeps` accepts, and no others. The kept tensors of a batch have a
    /// region of their own, so that they keep no other memory reserved. `keeps` is called for each tensor
    /// before the bytes of any tensor are read.
    pub fn keep(mut self, keeps: impl Fn(&TensorInfo) -> bool + Send + 'static) -> Self {
        self.keep = Keep::Only(Rule::new(keeps));
        self
    }

    /// All regions have the length of the longest batch, and are reused from batch to batch. Device memory is
    /// then reserved once, and does not fragment. For consumers that keep nothing: with [`keep`](Self::keep)
    /// or [`keep_all`](Self::keep_all), the load is an error. Default: each batch has a region of its own
    /// length, which is released with its tensors.
    pub fn even_regions(mut self) -> Self {
        self.even = true;
        self
    }
}

/// The plan of a load in batches. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BatchPlan {
    /// Number of batches.
    pub batches: usize,
    /// The most bytes of tensors in a batch of several tensors.
    pub max_batch_bytes: u64,
    /// Number of batches that are read ahead.
    pub ahead: usize,
    /// Number of tensors in all batches.
    pub tensors: usize,
    /// Bytes of those tensors.
    pub bytes: u64,
    /// Bytes of the tensors that the consumer keeps.
    pub kept_bytes: u64,
    /// The most device memory that batches in flight and kept tensors take at any time, if the consumer keeps
    /// no more than it declared.
    pub peak_bytes: u64,
    /// The choices of the plan, and the reasons. Also in the report of each batch.
    pub choices: Vec<Choice>,
}

/// The tensors in the order of the files, as they will be loaded.
///
/// # Errors
/// When the rule calls itself.
pub(super) fn items(checkpoint: &Checkpoint, keep: &Keep) -> Result<Vec<BatchItem>> {
    let kept = |info: &TensorInfo| match keep {
        Keep::Nothing => Ok(false),
        Keep::All => Ok(true),
        Keep::Only(rule) => rule.of(info),
    };
    checkpoint.tensors().map(|info| Ok(BatchItem { bytes: info.nbytes, kept: kept(info)? })).collect()
}

/// Schedules batches within the budget and the pool's remaining memory.
///
/// # Errors
/// When options contradict each other, or not even single tensors fit.
pub(super) fn schedule(
    checkpoint: &Checkpoint,
    options: &Options,
    batching: &Batching,
    items: &[BatchItem],
) -> Result<BatchSchedule> {
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
    let request = BatchRequest { max_batch_bytes, ahead, even, unit, room: room.map(|(bytes, _)| bytes) };
    plan::schedule(items, request).map_err(|infeasible| {
        let tensor = checkpoint.tensors().nth(infeasible.tensor);
        let (budget, limit) = room.unwrap_or((u64::MAX, "memory"));
        Error::InfeasibleBudget {
            limit,
            budget,
            needed: infeasible.needed,
            tensor: tensor.map_or_else(String::new, |info| info.name.to_string()),
            bytes: tensor.map_or(0, |info| info.nbytes),
            kept: infeasible.kept,
            largest: budget::largest(checkpoint.tensors()),
        }
    })
}

/// The memory that a pool's limit leaves, in bytes: the limit minus all regions with tensors of others.
/// `None` without a limit.
fn room_of(pool: &Pool) -> Option<u64> {
    let limit = pool.limit_bytes()?;
    // Returns dropped memory first.
    pool.trim_to(u64::MAX);
    let snapshot = pool.snapshot();
    let taken = snapshot.regions.iter().filter(|region| !region.fragments.is_empty());
    Some(limit.saturating_sub(taken.map(|region| region.reserved_bytes).sum()))
}

/// The plan for callers.
pub(super) fn describe(items: &[BatchItem], batching: &Batching, schedule: &BatchSchedule) -> BatchPlan {
    let BatchSchedule { batches, max_batch_bytes, ahead, peak_bytes, .. } = schedule;
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
