//! The events of a pool in order: for a replay with another policy, or for a picture over time.
//!
//! ```text
//! pool ──books' lock──> Recorder ──> buffer ──take──> EventLog ──LogWriter──> JSON lines ──Log::read──> replay
//! ```
//!
//! A pool that is built with a [`Recorder`] enters an event for each change of its books, under their lock, so events are in
//! the order of the changes. An event costs a clock reading and a push into a buffer. Whoever takes events out of the
//! [`EventLog`] encodes and writes them, without the pool's lock. A pool without a recorder executes one branch per change.
//!
//! The drop of a fragment takes no lock, so it is not in the log: [`Retire`](Event::Retire) says when the reaper or a placement
//! takes the fragment off the retire queue, [`Reap`](Event::Reap) when its range is free.
//!
//! **The buffer is bounded.** When it is full, the recording ends: the log is complete up to that moment, and
//! [`EventLog::is_full`] returns true. A log with a gap cannot be replayed.
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
//! JSON lines. The first is the [`Header`], the last is `{"end":N}` with the number of events, and each other line is a time in
//! nanoseconds since the pool was built, followed by an event:
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
