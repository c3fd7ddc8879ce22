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

mod format;
#[cfg(test)]
mod format_tests;
mod ledger;
#[cfg(test)]
mod record_tests;
mod recorder;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::fork::Process;
use crate::offsets::Policy;

pub use format::{Log, LogError, LogWriter};
pub(crate) use recorder::Place;
pub use recorder::Recorder;

/// The version of the file.
pub const VERSION: u32 = 1;

/// A capacity that holds a load of a million tensors, in about 100 MB.
pub const DEFAULT_CAPACITY: usize = 1 << 20;

/// Events of one piece of the buffer.
const CHUNK: usize = 1024;

/// An event and its time, in nanoseconds since the pool was built.
pub type Timed = (u64, Event);

/// What a log says of its pool; the options are the builder's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Header {
    /// Version of the file: [`VERSION`].
    #[serde(rename = "tensorhold_events")]
    pub version: u32,
    /// The pool's name.
    pub pool: String,
    /// The memory's name.
    pub memory: String,
    /// Ranges are rounded up to a multiple of this many bytes.
    pub granule: u64,
    /// Size of the regions that single placements share, in bytes.
    pub region_bytes: u64,
    /// The most bytes that a region of a planned batch may have.
    pub max_region_bytes: Option<u64>,
    /// The most bytes that may be reserved.
    pub limit_bytes: Option<u64>,
    /// Bytes of empty regions that are kept.
    pub retain_bytes: u64,
    /// How places in regions are found.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: Policy,
    /// Whether the regions of planned batches are backed in parts, and nothing else is placed there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_parts: bool,
}

fn is_default(policy: &Policy) -> bool {
    *policy == Policy::default()
}

/// A change of a pool's books. All sizes and offsets in bytes.
///
/// Fragments and regions are numbered from 0 in the order in which they come into the log; a number is never used again.
/// The blocks that planned batches are cut from are numbered as fragments are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Event {
    /// A region came.
    Grow {
        /// Its number.
        #[serde(rename = "r")]
        region: u64,
        /// Its size.
        #[serde(rename = "b")]
        bytes: u64,
    },
    /// A fragment was placed by itself.
    Alloc {
        /// Its number.
        #[serde(rename = "n")]
        fragment: u64,
        /// What it is called.
        #[serde(rename = "l")]
        label: Arc<str>,
        /// Its size as asked for. An empty fragment lies nowhere: its region and offset are 0 and mean nothing.
        #[serde(rename = "b")]
        bytes: u64,
        /// The alignment asked for.
        #[serde(rename = "a")]
        align: u64,
        /// The region.
        #[serde(rename = "r")]
        region: u64,
        /// Offset in the region.
        #[serde(rename = "o")]
        offset: u64,
    },
    /// A block was taken for one region of a planned batch's layout.
    Take {
        /// Its number.
        #[serde(rename = "n")]
        block: u64,
        /// What the batch is called until it is cut.
        #[serde(rename = "l")]
        label: Arc<str>,
        /// Its size, from the batch's first byte to its last, and never 0.
        #[serde(rename = "b")]
        bytes: u64,
        /// The largest alignment of the batch's fragments in this block.
        #[serde(rename = "a")]
        align: u64,
        /// The region.
        #[serde(rename = "r")]
        region: u64,
        /// Offset in the region.
        #[serde(rename = "o")]
        offset: u64,
    },
    /// A planned batch was cut into its fragments; its blocks are no more.
    Cut {
        /// The blocks.
        #[serde(rename = "k")]
        blocks: Vec<u64>,
        /// The number of the first part; the others are numbered on from there.
        #[serde(rename = "n")]
        first: u64,
        /// The fragments, in the order of the batch.
        #[serde(rename = "p")]
        parts: Vec<Part>,
    },
    /// The reaper, or a placement, found that these have no owner any more.
    Retire(Vec<u64>),
    /// The ranges of these can be used again.
    Reap(Vec<u64>),
    /// The memory could not be synchronized: the ranges of these are taken for good.
    Lose(Vec<u64>),
    /// The reaper is about to give back empty regions, but for those that fit into so many bytes.
    Trim {
        /// Bytes that may stay.
        #[serde(rename = "k")]
        keep: u64,
    },
    /// A part of a region has gone back to the memory.
    Part {
        /// The region's number.
        #[serde(rename = "r")]
        region: u64,
        /// The part's size.
        #[serde(rename = "b")]
        bytes: u64,
    },
    /// A region is on its way back to the memory.
    Release {
        /// Its number.
        #[serde(rename = "r")]
        region: u64,
        /// Its size, without the parts that went back before.
        #[serde(rename = "b")]
        bytes: u64,
    },
    /// The pool has closed. What was being placed then may still come, and what is held goes when it is dropped.
    Close,
}

/// A fragment of a planned batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u64, Arc<str>)", into = "(u32, u64, u64, Arc<str>)")]
pub struct Part {
    /// Which of the batch's blocks it lies in. Its alignment was that block's or less.
    pub block: u32,
    /// Offset in that block.
    pub offset: u64,
    /// Its size as asked for. An empty one lies nowhere: its block and offset mean nothing.
    pub bytes: u64,
    /// What it is called.
    pub label: Arc<str>,
}

impl From<(u32, u64, u64, Arc<str>)> for Part {
    fn from((block, offset, bytes, label): (u32, u64, u64, Arc<str>)) -> Self {
        Self { block, offset, bytes, label }
    }
}

impl From<Part> for (u32, u64, u64, Arc<str>) {
    fn from(part: Part) -> Self {
        (part.block, part.offset, part.bytes, part.label)
    }
}

impl Event {
    /// How much of the buffer it takes.
    fn weight(&self) -> usize {
        1 + match self {
            Self::Cut { parts, .. } => parts.len(),
            // Eight bytes each, where an event has about a hundred.
            Self::Retire(numbers) | Self::Reap(numbers) | Self::Lose(numbers) => numbers.len() / 8,
            _ => 0,
        }
    }
}

/// A recorder for one pool, and the log that it fills. The buffer between them holds about `capacity` events, where each
/// fragment of a planned batch counts as one.
#[must_use]
pub fn recorder(capacity: usize) -> (Recorder, EventLog) {
    let buffer = Buffer { header: None, chunks: Vec::new(), room: capacity, capacity, full: false };
    let log = EventLog { buffer: Arc::new(Mutex::new(buffer)), process: Process::current() };
    (Recorder::new(log.clone()), log)
}

/// The events of a pool that have been recorded and not been taken yet. Clones are the same log. In a child forked from the process that
/// made it, it is empty.
#[derive(Debug, Clone)]
pub struct EventLog {
    buffer: Arc<Mutex<Buffer>>,
    process: Process,
}

#[derive(Debug)]
struct Buffer {
    /// Once the pool has been built.
    header: Option<Header>,
    /// Of at most [`CHUNK`] events each, so that none is moved to make room, which would take long under the pool's lock.
    chunks: Vec<Vec<Timed>>,
    /// How much more it holds.
    room: usize,
    capacity: usize,
    full: bool,
}

impl EventLog {
    /// The pool's description; `None` before it has been built.
    pub fn header(&self) -> Option<Header> {
        self.buffer()?.header.clone()
    }

    /// Takes the events out, so that there is room for more. Each call goes on where the last one ended.
    pub fn take(&self) -> Vec<Timed> {
        let Some(mut buffer) = self.buffer() else { return Vec::new() };
        buffer.room = buffer.capacity;
        let chunks = std::mem::take(&mut buffer.chunks);
        drop(buffer);
        chunks.into_iter().flatten().collect()
    }

    /// Whether an event found no room, so that the recording has ended before the pool.
    pub fn is_full(&self) -> bool {
        self.buffer().is_some_and(|buffer| buffer.full)
    }

    /// Takes the events out and writes them as a log of their own, which has to hold all that has happened: for a log that is
    /// taken piece by piece there is [`LogWriter`].
    ///
    /// # Errors
    /// When no pool has been built with the recorder, or `out` refuses.
    pub fn write_to<W: io::Write>(&self, out: W) -> io::Result<W> {
        let header = self.header().ok_or_else(|| {
            io::Error::other(
                "write an event log: no pool was built with its recorder; give it to PoolBuilder::events",
            )
        })?;
        let mut writer = LogWriter::new(out, &header)?;
        writer.write(&self.take())?;
        writer.finish()
    }

    fn begin(&self, header: Header) {
        if let Some(mut buffer) = self.buffer() {
            buffer.header = Some(header);
        }
    }

    /// Enters an event. `false` if there is no room for it, and from then on.
    fn push(&self, time: u64, event: Event) -> bool {
        let Some(mut buffer) = self.buffer() else { return false };
        let weight = event.weight();
        if buffer.full || weight > buffer.room {
            buffer.full = true;
            return false;
        }
        buffer.room -= weight;
        match buffer.chunks.last_mut().filter(|chunk| chunk.len() < CHUNK) {
            Some(chunk) => chunk.push((time, event)),
            None => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push((time, event));
                buffer.chunks.push(chunk);
            }
        }
        true
    }

    /// `None` in a forked child, where another thread of the parent may have held its lock.
    fn buffer(&self) -> Option<MutexGuard<'_, Buffer>> {
        // Nothing panics while it holds the lock, and the buffer is changed by whole steps.
        self.process.is_current().then(|| self.buffer.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
