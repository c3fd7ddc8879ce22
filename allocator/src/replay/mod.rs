//! Replays the [log](crate::events) of a pool with a placement policy: pure arithmetic, no memory is touched.
//!
//! A replay places and frees what the pool placed and freed, in the order of the log, and where the policy says. It grows and
//! gives back regions by the pool's own rules, as if one thread had done everything, or it has one space of a given size. The
//! same log and policy give the same result, down to each offset: the [`Digest`] says so. What the pool backed in parts is a region of its own
//! here too, and goes as a whole.
//!
//! ```
//! use std::sync::Arc;
//! use tensorhold_allocator::events::{self, Log};
//! use tensorhold_allocator::replay::{self, Policy, Room};
//! use tensorhold_allocator::{HostMemory, Pool, Request};
//!
//! let (recorder, log) = events::recorder(events::DEFAULT_CAPACITY);
//! let pool = Pool::builder(Arc::new(HostMemory::new())).events(recorder).build()?;
//! for size in [1000, 2000, 3000] {
//!     drop(pool.place("t", Request::new(size, 256))?);
//!     pool.trim();
//! }
//! let log = Log::read(&log.write_to(Vec::new())?[..])?;
//!
//! let replayed = replay::replay(&log, Policy::BestFit, Room::Growing);
//! assert_eq!(replayed.digest, replay::recorded(&log).digest); // the pool's own policy: the same offsets
//! assert_eq!(replayed.peak_live_bytes, 3000);
//! assert_eq!(replay::smallest_space(&log, Policy::BestFit), Some(3072));
//! assert_eq!(replay::smallest_space(&log, Policy::Planned), Some(1024 + 2048 + 3072)); // nothing is used twice
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod digest;
mod run;
mod space;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::run::Run;
use crate::events::{Event, Log};

pub use self::digest::Digest;

/// Where a request is placed.
///
/// Another one is a variant here, a line in [`ALL`](Self::ALL) and [`name`](Self::name), and one in `space.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// In the smallest free block that holds it: [`BestFit`](crate::offsets::BestFit), as pools do by default.
    BestFit,
    /// In the first free block of a class that surely holds it: [`Segregated`](crate::offsets::Segregated).
    Segregated,
    /// Behind what was placed before: [`Bump`](crate::offsets::Bump). Nothing is used twice until its region has gone.
    Planned,
}

impl Policy {
    /// All policies.
    pub const ALL: &[Self] = &[Self::BestFit, Self::Segregated, Self::Planned];

    /// Its name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BestFit => "best-fit",
            Self::Segregated => "segregated",
            Self::Planned => "planned",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no policy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a policy: {}", Policy::ALL.iter().map(|policy| policy.name()).collect::<Vec<_>>().join(", "))]
pub struct UnknownPolicy;

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.iter().copied().find(|policy| policy.name() == text).ok_or(UnknownPolicy)
    }
}

/// What a replay has to place in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Room {
    /// Regions that come and go as the pool's do, within its limit. Their first addresses are taken to be multiples of
    /// every alignment that is asked for.
    Growing,
    /// One space of so many bytes.
    Capacity(u64),
}

/// What came of a replay. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Replayed {
    /// Requests placed or refused, parts cut, and ranges freed; empty fragments are none.
    pub operations: u64,
    /// Requests that were refused. A planned batch has one for each of its blocks.
    pub failures: u64,
    /// The most that was live, by the sizes asked for. A planned batch counts with its padding until it is cut.
    pub peak_live_bytes: u64,
    /// The most that was reserved; the capacity, where that is given.
    pub peak_reserved_bytes: u64,
    /// How many regions came.
    pub regions: u64,
    /// Free when the most was live.
    pub free_at_peak_bytes: u64,
    /// The largest free block then.
    pub largest_free_at_peak_bytes: u64,
    /// Of where everything was placed.
    pub digest: Digest,
}

impl Replayed {
    /// External fragmentation at the peak of live bytes: which part of the free bytes is not in the largest free block.
    pub fn fragmentation_at_peak(&self) -> f64 {
        match self.free_at_peak_bytes {
            0 => 0.0,
            free => 1.0 - self.largest_free_at_peak_bytes as f64 / free as f64,
        }
    }
}

/// Replays a log.
pub fn replay(log: &Log, policy: Policy, room: Room) -> Replayed {
    let mut run = Run::new(log, policy, room);
    run.keep_digest();
    log.events.iter().enumerate().for_each(|(index, (_, event))| run.step(index, event));
    let mut replayed = run.replayed();
    // What is free is asked once, where the peak is known to be.
    let mut again = Run::new(log, policy, room);
    let until_peak = log.events.iter().take(run.peak_index() + 1).enumerate();
    until_peak.for_each(|(index, (_, event))| again.step(index, event));
    (replayed.free_at_peak_bytes, replayed.largest_free_at_peak_bytes) = again.free_now();
    replayed
}

/// The mean time of an operation of a replay in nanoseconds, the best of three runs. It is not the same each time.
pub fn nanoseconds_per_operation(log: &Log, policy: Policy, room: Room) -> f64 {
    let time = |_| {
        let mut run = Run::new(log, policy, room);
        let started = Instant::now();
        log.events.iter().enumerate().for_each(|(index, (_, event))| run.step(index, event));
        started.elapsed().as_nanos() as f64 / run.replayed().operations.max(1) as f64
    };
    (0..3).map(time).fold(f64::INFINITY, f64::min)
}

/// The smallest space, as a multiple of the granule, in which no request fails; `None` if none of 2^62 bytes will do.
///
/// Found by halving, so a smaller one may do where one that is larger does not, which is rare.
pub fn smallest_space(log: &Log, policy: Policy) -> Option<u64> {
    let granule = log.header.granule;
    let fits = |capacity| {
        let mut run = Run::new(log, policy, Room::Capacity(capacity));
        log.events.iter().enumerate().all(|(index, (_, event))| {
            run.step(index, event);
            !run.has_failed()
        })
    };
    // With all the room that there can be, as much is live as ever will be; less room than that is not enough.
    let mut all = Run::new(log, policy, Room::Capacity(run::MAX_BYTES));
    log.events.iter().enumerate().for_each(|(index, (_, event))| all.step(index, event));
    if all.has_failed() {
        return None;
    }
    let mut high = all.replayed().peak_live_bytes.checked_next_multiple_of(granule)?;
    let mut low = high;
    while !fits(high) {
        low = high;
        high = high.checked_mul(2).filter(|&high| high <= run::MAX_BYTES)?;
    }
    while high - low > granule {
        let middle = low + ((high - low) / 2).next_multiple_of(granule);
        if middle >= high {
            break;
        }
        if fits(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// What the pool itself did, as the log tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recorded {
    /// The most that was reserved, in bytes.
    pub peak_reserved_bytes: u64,
    /// How many regions came.
    pub regions: u64,
    /// Of where everything was placed.
    pub digest: Digest,
}

/// Sums up what the pool did. A replay of its policy has the same digest, unless something was given back or placed
/// while a thread waited for a new region.
pub fn recorded(log: &Log) -> Recorded {
    let mut recorded = Recorded { peak_reserved_bytes: 0, regions: 0, digest: Digest::default() };
    let (mut reserved, mut blocks) = (0_u64, HashMap::new());
    for (_, event) in &log.events {
        match event {
            Event::Grow { bytes, .. } => {
                recorded.regions += 1;
                reserved = reserved.saturating_add(*bytes);
                recorded.peak_reserved_bytes = recorded.peak_reserved_bytes.max(reserved);
            }
            Event::Release { bytes, .. } => reserved = reserved.saturating_sub(*bytes),
            Event::Alloc { bytes: 1.., region, offset, .. } => {
                recorded.digest.enter(Some((*region, *offset)))
            }
            Event::Take { block, region, offset, .. } => {
                blocks.insert(*block, (*region, *offset));
                recorded.digest.enter(Some((*region, *offset)));
            }
            Event::Cut { blocks: cut, parts, .. } => {
                let cut: Vec<_> = cut.iter().filter_map(|block| blocks.remove(block)).collect();
                for part in parts.iter().filter(|part| part.bytes > 0) {
                    if let Some(&(region, offset)) = cut.get(part.block as usize) {
                        recorded.digest.enter(Some((region, offset.saturating_add(part.offset))));
                    }
                }
            }
            _ => {}
        }
    }
    recorded
}
