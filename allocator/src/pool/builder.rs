//! [`PoolBuilder`]: the options of a pool, and their defaults.

use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::handle::Pool;
use crate::core::{BatchRegions, PoolConfig, PoolCore, Sharding};
use crate::error::{Error, Result};
use crate::events::Recorder;
use crate::memory::Memory;
use crate::offsets::Policy;
use crate::reclaim::start_reaper;

/// Options of a [`Pool`], chained by value.
#[derive(Debug)]
#[must_use]
pub struct PoolBuilder {
    config: PoolConfig,
    recorder: Option<Recorder>,
    parts: RegionParts,
}

/// Whether the regions of planned batches are backed in parts. If they are, a dropped fragment's memory is released while its
/// neighbours live, except for the allocation units (2 MiB on CUDA devices) at its two ends, which it shares with them.
///
/// The pool does not reuse freed ranges of such a region. The memory of a batch is committed part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RegionParts {
    /// A region is reserved and released as a whole, and its free ranges are reused.
    #[default]
    Whole,
    /// In parts if the memory supports it; otherwise a [`Snapshot`](crate::Snapshot) gives the reason.
    Auto,
    /// In parts; building the pool fails if the memory does not support it.
    Require,
}

impl Pool {
    /// A pool with default options.
    ///
    /// # Errors
    /// When the reaper thread cannot be started.
    pub fn new(memory: impl Memory) -> Result<Self> {
        Self::builder(Arc::new(memory)).build()
    }

    /// A pool over `memory`, with options.
    pub fn builder(memory: Arc<dyn Memory>) -> PoolBuilder {
        PoolBuilder::new(memory)
    }
}

impl PoolBuilder {
    fn new(memory: Arc<dyn Memory>) -> Self {
        Self { config: PoolConfig::new(memory), recorder: None, parts: RegionParts::default() }
    }

    /// Names the pool in errors and snapshots. Default: the memory's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// At most this many bytes are reserved at any time. Default: no limit.
    pub fn limit_bytes(mut self, bytes: u64) -> Self {
        self.config.limit_bytes = Some(bytes);
        self
    }

    /// Calls `on_pressure` when the limit or the memory refuses a placement, with the refusal and the number of calls for this
    /// placement, from 1. If it returns `Continue`, because it has dropped fragments for example, the placement is tried again; if it
    /// returns `Break`, the refusal is returned. It runs on the thread that places, without a lock, and must not place on this pool.
    /// Default: none.
    pub fn on_pressure(
        mut self,
        on_pressure: impl Fn(&Error, u32) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        self.config.on_pressure = Some(Box::new(on_pressure));
        self
    }

    /// Size of the regions that single placements share. Default: 64 MiB. A larger fragment gets a region of its own
    /// size.
    pub fn region_bytes(mut self, bytes: u64) -> Self {
        self.config.region_bytes = bytes;
        self
    }

    /// The largest region of a planned batch. Default: the size of the batch. A larger fragment gets a region of its own size.
    pub fn max_region_bytes(mut self, bytes: NonZeroU64) -> Self {
        self.config.max_region_bytes = Some(bytes);
        self
    }

    /// Bytes of empty regions that are kept for later placements, until [`Pool::trim`]. Default: 0.
    pub fn retain_bytes(mut self, bytes: u64) -> Self {
        self.config.retain_bytes = bytes;
        self
    }

    /// The policy by which single fragments and the blocks of batches are placed in a region. Default: [`Policy::BestFit`], for few
    /// large fragments; [`Policy::Segregated`] suits many small ones. Within its block, a batch is laid out without a search.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.config.policy = policy;
        self
    }

    /// How threads that place at the same time are served. Default: [`Sharding::Auto`]. A pool that records events has no shards.
    pub fn sharding(mut self, sharding: Sharding) -> Self {
        self.config.sharding = sharding;
        self
    }

    /// Records the pool's events: see [`events`](crate::events). Default: none are recorded.
    pub fn events(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// How the regions of planned batches are backed. Default: [`RegionParts::Whole`].
    pub fn region_parts(mut self, parts: RegionParts) -> Self {
        self.parts = parts;
        self
    }

    /// Starts the pool.
    ///
    /// # Errors
    /// When the reaper thread cannot be started, or parts are required and the memory does not support them.
    pub fn build(mut self) -> Result<Pool> {
        let parted = self.config.memory.parted().map(|parted| parted.unit());
        self.config.batch_regions = match (self.parts, parted) {
            (RegionParts::Whole, _) => BatchRegions::Whole(None),
            (_, Ok(unit)) => BatchRegions::Parts(unit),
            (RegionParts::Auto, Err(reason)) => BatchRegions::Whole(Some(reason.to_string().into())),
            (RegionParts::Require, Err(source)) => {
                return Err(Error::NoParts { pool: self.config.name, source });
            }
        };
        self.config.is_recording = self.recorder.is_some();
        let core = Arc::new(PoolCore::new(self.config, self.recorder));
        if core.config().sharding == Sharding::Always && core.may_have_shards() {
            core.make_shards();
        }
        core.begin_log();
        start_reaper(&core).map_err(|source| Error::Reaper { pool: core.config().name.clone(), source })?;
        Ok(Pool::started(core))
    }
}
