//! Replays the [log](crate::events) of a pool with a placement policy. It is pure arithmetic and touches no memory.
//!
//! A replay places and frees the fragments of the log in its order, at the offsets that the policy chooses. It adds and releases
//! regions by the pool's rules, as if one thread had done everything, or places in one space of a given size. The same log and
//! policy give the same offsets, which the [`Digest`] shows. A batch that the pool backed in parts has a region of its own, which
//! is released as a whole.
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

mod analysis;
mod digest;
mod policy;
mod report;
mod run;
mod space;
#[cfg(test)]
mod tests;

pub use analysis::{nanoseconds_per_operation, recorded, replay, smallest_space};
pub use digest::Digest;
pub use policy::{Policy, UnknownPolicy};
pub use report::{Recorded, Replayed, Room};
