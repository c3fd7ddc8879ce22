//! [`PoolConfig`]: what a pool is built with. It never changes afterwards.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::Error;
use crate::memory::{Memory, MemoryId};
use crate::offsets::Policy;

/// How a pool serves threads that place at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Sharding {
    /// One set of books until threads keep contending for its lock; shards from then on.
    #[default]
    Auto,
    /// One set of books.
    Never,
    /// Shards from the first placement on: for tests, which need not wait for contention.
    #[doc(hidden)]
    Always,
}

/// How the regions of planned batches are backed.
#[derive(Debug, Clone)]
pub(crate) enum BatchRegions {
    /// As other regions are. Holds the reason where parts were asked for.
    Whole(Option<Arc<str>>),
    /// In parts of this many bytes or a multiple of it.
    Parts(u64),
}

/// Called when a placement is refused, with the refusal and the number of calls for this placement; continues if it has made room.
pub(crate) type OnPressure = dyn Fn(&Error, u32) -> ControlFlow<()> + Send + Sync;

/// The memory, name and options of a pool; see the methods of [`PoolBuilder`](crate::PoolBuilder).
pub(crate) struct PoolConfig {
    pub(crate) memory: Arc<dyn Memory>,
    /// What the memory answered when the pool was built (I7).
    pub(crate) memory_id: MemoryId,
    pub(crate) is_used_by_devices: bool,
    pub(crate) is_host_accessible: bool,
    pub(crate) name: String,
    pub(crate) limit_bytes: Option<u64>,
    pub(crate) region_bytes: u64,
    pub(crate) max_region_bytes: Option<NonZeroU64>,
    pub(crate) retain_bytes: u64,
    pub(crate) granule: u64,
    pub(crate) policy: Policy,
    pub(crate) sharding: Sharding,
    /// Whether the books have an event log.
    pub(crate) is_recording: bool,
    pub(crate) batch_regions: BatchRegions,
    pub(crate) on_pressure: Option<Box<OnPressure>>,
}

const DEFAULT_REGION_BYTES: u64 = 64 << 20;
const DEFAULT_GRANULE: u64 = 256;

/// How many spans make a region.
const SPANS_PER_REGION: u64 = 32;

impl PoolConfig {
    /// The default options.
    pub(crate) fn new(memory: Arc<dyn Memory>) -> Self {
        Self {
            memory_id: memory.id(),
            is_used_by_devices: memory.is_used_by_devices(),
            is_host_accessible: memory.is_host_accessible(),
            name: memory.name().to_owned(),
            memory,
            limit_bytes: None,
            region_bytes: DEFAULT_REGION_BYTES,
            max_region_bytes: None,
            retain_bytes: 0,
            granule: DEFAULT_GRANULE,
            policy: Policy::default(),
            sharding: Sharding::default(),
            is_recording: false,
            batch_regions: BatchRegions::Whole(None),
            on_pressure: None,
        }
    }

    /// Length of the spans of shards in bytes; 0 if regions are too small for shards.
    #[inline]
    pub(crate) fn span_bytes(&self) -> u64 {
        let granule = self.granule.checked_next_power_of_two().unwrap_or(1);
        (self.region_bytes / SPANS_PER_REGION) & !(granule - 1)
    }

    /// The error of a batch whose layout and fragments do not belong together.
    pub(crate) fn broken_batch(&self, fragments: usize, problem: impl Into<String>) -> Error {
        Error::Batch { pool: self.name.clone(), fragments, problem: problem.into() }
    }
}

impl fmt::Debug for PoolConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolConfig")
            .field("name", &self.name)
            .field("limit_bytes", &self.limit_bytes)
            .field("region_bytes", &self.region_bytes)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
