//! What happens in a pool, one event after the other: for a replay with another policy, or for a picture over time.
//!
//! ```text
//! pool ──books' lock──> Recorder ──> buffer ──take──> EventLog ──LogWriter──> JSON lines ──Log::read──> replay
//! ```
//!
//! A pool that is built with a [`Recorder`] enters an event for each change of its books, under the lock that guards them:
//! the events are in the order of the books. That takes a clock and a push into a buffer in memory. Encoding and writing
//! is done by whoever takes events out of the [`EventLog`], without the pool's lock. A pool without a recorder asks one
//! branch a change.
//!
//! The drop of a fragment takes no lock, so it is not in the log: [`Retire`](Event::Retire) is when the reaper, or a placement, finds that the
//! last owner has gone, [`Reap`](Event::Reap) when the range can be used again.
//!
//! **The buffer is bounded.** When it is full the recording ends, for good: the log then is whole up to a moment, and
//! [`EventLog::is_full`] says so. A log with a hole would be of no use to a replay.
//!
//! ```
//! use std::sync::Arc;
//! use tensorhold_allocator::events::{self, Event, Log};
//! use tensorhold_allocator::{HostMemory, Pool, Request};
//!
//! let (recorder, log) = events::recorder(events::DEFAULT_CAPACITY);
//! let pool = Pool::builder(Arc::new(HostMemory::new())).events(recorder).build()?;
//! drop(pool.place("scales", Request::new(1024, 256))?);
//! pool.close();
//!
//! let file = log.write_to(Vec::new())?;
//! let read = Log::read(&file[..])?;
//! assert!(read.events.iter().any(|(_, event)| matches!(event, Event::Alloc { bytes: 1024, .. })));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The file
//! JSON lines. The first is the [`Header`], the last `{"end":N}` with the number of events, and each other one is an event
//! behind its time in nanoseconds since the pool was built:
//!
//! ```text
//! {"tensorhold_events":1,"pool":"host","memory":"host","granule":256,"region_bytes":67108864,...}
//! [1200,{"grow":{"r":0,"b":67108864}}]
//! [1300,{"alloc":{"n":0,"l":"scales","b":1024,"a":256,"r":0,"o":0}}]
//! [9000,{"retire":[0]}]
//! [9100,{"reap":[0]}]
//! [9200,{"trim":{"k":0}}]
//! [9200,{"release":{"r":0,"b":67108864}}]
//! [9300,"close"]
//! {"end":7}
//! ```
#![cfg_attr(not(test), forbid(unsafe_code))]

mod event;
mod format;
#[cfg(test)]
mod format_tests;
mod ledger;
mod log;
#[cfg(test)]
mod record_tests;
mod recorder;

pub use event::{Event, Header, Part, Timed, VERSION};
pub use format::{Log, LogError, LogWriter};
pub use log::{DEFAULT_CAPACITY, EventLog};
pub(crate) use recorder::Place;
pub use recorder::{Recorder, recorder};
