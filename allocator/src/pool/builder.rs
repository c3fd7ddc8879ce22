//! How a pool is made: its options, and their defaults.

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

/// Whether the regions of planned batches are backed in parts, so that a fragment's memory goes back to the device as soon as the
/// fragment does, though its neighbours live: all of it but what lies in the units (2 MiB on CUDA devices) at its two ends, which
/// goes with the neighbours there.
///
/// What is freed in such a region is not used again by the pool. Memory for a batch is brought up part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RegionParts {
    /// A region is reserved and released as a whole; what is free in it is used again.
    #[default]
    Whole,
    /// In parts where the memory can do that; a [`Snapshot`](crate::Snapshot) says why it cannot.
    Auto,
    /// In parts, or there is no pool.
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

    /// Asks `on_pressure` when a placement is refused by the limit or the memory, with the refusal and a number that counts from 1 for
    /// each placement. If it has made room (dropped fragments, say) it continues, and the placement is tried again; if it
    /// breaks, the refusal is returned. It is called on the thread that places, without a lock, and must not place on this
    /// pool. Default: no one is asked.
    pub fn on_pressure(
        mut self,
        on_pressure: impl Fn(&Error, u32) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        self.config.on_pressure = Some(Box::new(on_pressure));
        self
    }

    /// How large a region is that single placements share. Default: 64 MiB. A larger fragment gets a region of its
    /// own size.
    pub fn region_bytes(mut self, bytes: u64) -> Self {
        self.config.region_bytes = bytes;
        self
    }

    /// How large a region of a planned batch may be. Default: as large as the batch. A larger fragment gets a region of its own size.
    pub fn max_region_bytes(mut self, bytes: NonZeroU64) -> Self {
        self.config.max_region_bytes = Some(bytes);
        self
    }

    /// How many bytes of empty regions are kept for later placements, until [`Pool::trim`]. Default: 0.
    pub fn retain_bytes(mut self, bytes: u64) -> Self {
        self.config.retain_bytes = bytes;
        self
    }

    /// By which policy single placements, and the blocks of batches, find their place in a region. Default: [`Policy::BestFit`], for few and
    /// large; [`Policy::Segregated`] is for many and small. Within its block, a batch is laid out without a search.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.config.policy = policy;
        self
    }

    /// How threads that place at once are served. Default: [`Sharding::Auto`]. A pool whose events are recorded has one set of books.
    pub fn sharding(mut self, sharding: Sharding) -> Self {
        self.config.sharding = sharding;
        self
    }

    /// Records what happens in the pool: see [`events`](crate::events). Default: nothing is recorded.
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
    /// When the reaper thread cannot be started, or parts are required of a memory that has none.
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
