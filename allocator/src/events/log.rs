//! [`EventLog`]: the buffer between a pool, which records events, and whoever takes them out.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::event::{Event, Header, Timed};
use super::format::LogWriter;
use crate::fork::Process;

/// A capacity for a load of a million tensors; about 100 MB.
pub const DEFAULT_CAPACITY: usize = 1 << 20;

/// Events in one chunk of the buffer.
const CHUNK: usize = 1024;

/// The recorded events of a pool that were not taken yet. Clones are the same log. In a forked child, it is empty.
#[derive(Debug, Clone)]
pub struct EventLog {
    buffer: Arc<Mutex<Buffer>>,
    process: Process,
}

#[derive(Debug)]
struct Buffer {
    /// Once the pool has been built.
    header: Option<Header>,
    /// Of up to [`CHUNK`] events each: a growing vector would move all events under the pool's lock.
    chunks: Vec<Vec<Timed>>,
    /// Remaining capacity.
    room: usize,
    capacity: usize,
    full: bool,
}

impl EventLog {
    /// An empty log with room for `capacity` events.
    pub(super) fn new(capacity: usize) -> Self {
        let buffer = Buffer { header: None, chunks: Vec::new(), room: capacity, capacity, full: false };
        Self { buffer: Arc::new(Mutex::new(buffer)), process: Process::current() }
    }

    /// The pool's description; `None` before it has been built.
    pub fn header(&self) -> Option<Header> {
        self.buffer()?.header.clone()
    }

    /// Takes the events out, which makes room for more. Each call continues where the last one ended.
    pub fn take(&self) -> Vec<Timed> {
        let Some(mut buffer) = self.buffer() else { return Vec::new() };
        buffer.room = buffer.capacity;
        let chunks = mem::take(&mut buffer.chunks);
        drop(buffer);
        chunks.into_iter().flatten().collect()
    }

    /// Whether the buffer was full, so that the recording ended before the pool.
    pub fn is_full(&self) -> bool {
        self.buffer().is_some_and(|buffer| buffer.full)
    }

    /// Takes the events out and writes them as a complete log: no events may have been taken before. To write piece by piece,
    /// use [`LogWriter`].
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

    pub(super) fn begin(&self, header: Header) {
        if let Some(mut buffer) = self.buffer() {
            buffer.header = Some(header);
        }
    }

    /// Enters an event. Returns `false` if the buffer is full, and from then on.
    pub(super) fn push(&self, time: u64, event: Event) -> bool {
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
