//! Many reads at a time: batches. They are worth their while for short reads, each of which would cost a call.
//!
//! A batch of the library's keeps track of what was submitted to it at once: with libcufile 1.15 in compatibility mode, a read that is in flight
//! when others are submitted is never told of again. So reads gather until someone waits, and go together to a batch that has nothing in flight; there
//! are two, so that some are under way while others gather.

use std::collections::VecDeque;
use std::ffi::{c_int, c_uint};
use std::io;
use std::mem;
use std::ptr;
use std::sync::Arc;

use super::library::{BatchEvent, BatchRead, RawBatch, RawHandle};
use super::queue::{one_buffer, read_all};
use super::status::{CuFileError, read_result};
use super::{CuFile, Handle};
use crate::io::{Completion, Queue, Read, too_many};

/// How a read of a batch stands.
mod state {
    use std::ffi::c_int;

    pub(super) const COMPLETE: c_int = 0x10;
    pub(super) const WAITING: c_int = 0x1;
    pub(super) const PENDING: c_int = 0x2;
}

/// `CUFILE_BATCH` and `CUFILE_READ`.
const MODE: c_int = 1;
const READ: c_int = 0;

/// Reads in flight by the library's batch interface.
pub(super) struct Batches {
    cufile: Arc<CuFile>,
    /// The one that has been in flight for longest is first.
    batches: VecDeque<Batch>,
    /// By ticket: the read that was submitted and has not ended.
    flights: Vec<Option<Flight>>,
    /// What no batch has been given yet.
    gathered: Vec<BatchRead>,
    /// Reads that ended when they were submitted, or were told of together with others.
    ended: Vec<Completion>,
}

/// A batch of the library's, and room for what it is told and tells.
struct Batch {
    raw: RawBatch,
    /// What it was told, which it may look at again while reads are in flight.
    entries: Vec<BatchRead>,
    events: Vec<BatchEvent>,
    in_flight: usize,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    /// Of a file with a lease (D2).
    file: RawHandle,
    start: *mut u8,
    bytes: usize,
    offset: u64,
    /// What it was given to; null while it gathers.
    batch: RawBatch,
}

// SAFETY: a batch is a name that the library takes from any thread; the addresses are those of buffers that the submitters lent.
unsafe impl Send for Batches {}

impl Batches {
    const COUNT: usize = 2;

    pub(super) fn new(cufile: Arc<CuFile>, depth: usize) -> io::Result<Self> {
        let depth = depth.min(cufile.max_batch()).max(1);
        let mut new = Self {
            cufile,
            batches: VecDeque::with_capacity(Self::COUNT),
            flights: vec![None; depth],
            gathered: Vec::with_capacity(depth),
            ended: Vec::new(),
        };
        for _ in 0..Self::COUNT {
            let mut raw: RawBatch = ptr::null_mut();
            // SAFETY: D1; `raw` is valid for the write.
            unsafe { (new.cufile.table().batch_set_up)(&raw mut raw, depth as c_uint) }
                .check("set up a batch")?;
            let nothing = BatchEvent { cookie: ptr::null_mut(), status: 0, returned: 0 };
            let entries = Vec::with_capacity(depth);
            new.batches.push_back(Batch { raw, entries, events: vec![nothing; depth], in_flight: 0 });
        }
        Ok(new)
    }

    /// Gives what has gathered to a batch that has nothing in flight, if there is one.
    fn start(&mut self) {
        let idle = self.batches.iter().position(|batch| batch.in_flight == 0);
        let Some(mut batch) =
            idle.filter(|_| !self.gathered.is_empty()).and_then(|at| self.batches.remove(at))
        else {
            return;
        };
        mem::swap(&mut batch.entries, &mut self.gathered);
        self.gathered.clear();
        let (count, entries) = (batch.entries.len(), batch.entries.as_mut_ptr());
        // SAFETY: D1, D2; the submitters keep the buffers until the completions have been taken or this is dropped, which waits. The
        // entries stay where they are for as long.
        let status = unsafe { (self.cufile.table().batch_submit)(batch.raw, count as c_uint, entries, 0) };
        match status.check("submit reads") {
            Ok(()) => {
                batch.in_flight = count;
                for entry in &batch.entries {
                    if let Some(flight) = &mut self.flights[entry.cookie.addr()] {
                        flight.batch = batch.raw;
                    }
                }
            }
            Err(error) => {
                // Of several, some may have begun, as far as its documents say (D4).
                if count > 1 {
                    self.cufile.lose();
                }
                for entry in &batch.entries {
                    let ticket = entry.cookie.addr();
                    self.flights[ticket] = None;
                    self.ended.push(Completion { ticket, result: Err(error.clone().into()) });
                }
            }
        }
        self.batches.push_back(batch);
    }

    /// Waits for one read or more of the batch that has been in flight for longest, and notes them.
    fn wait(&mut self) -> io::Result<()> {
        let Some(at) = self.batches.iter().position(|batch| batch.in_flight > 0) else { return Ok(()) };
        let batch = &mut self.batches[at];
        let mut count = batch.events.len() as c_uint;
        // SAFETY: D1; the outputs are valid for the writes of as many events as `count` says; without a time it waits.
        let status = unsafe {
            (self.cufile.table().batch_status)(
                batch.raw,
                1,
                &raw mut count,
                batch.events.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        status.check("say how a batch stands")?;
        if count == 0 {
            return Err(CuFileError::of_lost_reads().into());
        }
        for index in 0..(count as usize).min(self.batches[at].events.len()) {
            let event = self.batches[at].events[index];
            if matches!(event.status, state::WAITING | state::PENDING) {
                continue;
            }
            let ticket = event.cookie.addr();
            let raw = self.batches[at].raw;
            // One that it has told of before may be another batch's by now.
            let told =
                self.flights.get_mut(ticket).and_then(|flight| flight.take_if(|flight| flight.batch == raw));
            let Some(flight) = told else { continue };
            self.batches[at].in_flight -= 1;
            self.ended.push(Completion { ticket, result: self.outcome(flight, event) });
        }
        Ok(())
    }

    /// What became of a read. What stopped short is read on at once: only the end of the file ends a read.
    fn outcome(&self, flight: Flight, event: BatchEvent) -> io::Result<usize> {
        let done = read_result(event.returned, || CuFileError::of_a_read().into())?;
        match event.status {
            state::COMPLETE if done > flight.bytes => Err(too_many(done, flight.bytes)),
            state::COMPLETE if done == flight.bytes => Ok(done),
            state::COMPLETE if done == 0 => Ok(0),
            state::COMPLETE => {
                let rest = (flight.start.wrapping_add(done), flight.bytes - done);
                // SAFETY: the read has ended, and its submitter still lends the buffer.
                let more = unsafe { read_all(&self.cufile, flight.file, rest, flight.offset + done as u64) }?;
                Ok(done + more)
            }
            status => {
                tracing::debug!(status, "a read of a batch ended otherwise than complete");
                Err(CuFileError::of_a_read().into())
            }
        }
    }
}

impl Queue for Batches {
    fn depth(&self) -> usize {
        self.flights.len()
    }

    unsafe fn submit(&mut self, read: Read<'_, '_>) -> io::Result<()> {
        let (start, bytes) = one_buffer(&read)?;
        let (ticket, file, offset) = (read.ticket, Handle::of(read.file)?, read.offset);
        let free = self.flights.get(ticket).is_some_and(Option::is_none);
        if !free {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the ticket is taken, or beyond the depth",
            ));
        }
        let cufile = &self.cufile;
        // Longer ones are for the other interface, unless it goes through the CPU.
        if bytes as u64 > cufile.max_batch_read() {
            // SAFETY: passed on.
            let result = unsafe { read_all(&self.cufile, file, (start, bytes), offset) };
            self.ended.push(Completion { ticket, result });
            return Ok(());
        }
        let place = cufile.place(start);
        self.gathered.push(BatchRead {
            mode: MODE,
            base: place.base,
            file_offset: libc::off_t::try_from(offset).map_err(io::Error::other)?,
            offset: place.offset,
            bytes,
            file,
            operation: READ,
            cookie: ptr::without_provenance_mut(ticket),
        });
        self.flights[ticket] = Some(Flight { file, start, bytes, offset, batch: ptr::null_mut() });
        Ok(())
    }

    fn complete(&mut self) -> io::Result<Completion> {
        loop {
            if self.ended.is_empty() {
                self.start();
            }
            if let Some(completion) = self.ended.pop() {
                return Ok(completion);
            }
            if self.batches.iter().all(|batch| batch.in_flight == 0) {
                return Err(io::Error::other("no read is in flight"));
            }
            self.wait()?;
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        if self.cufile.is_of_parent() {
            mem::forget(mem::take(&mut self.batches));
            return;
        }
        while self.batches.iter().any(|batch| batch.in_flight > 0) {
            if let Err(error) = self.wait() {
                // D4: what they write to stays, and so do the batches.
                let reads: usize = self.batches.iter().map(|batch| batch.in_flight).sum();
                self.cufile.lose();
                // The library may look at them again, and write to the events.
                mem::forget(mem::take(&mut self.batches));
                // Only now: a subscriber that panics ends this.
                tracing::error!(%error, reads, "cuFile does not say whether reads have ended");
                return;
            }
        }
        if self.cufile.is_lost() {
            mem::forget(mem::take(&mut self.batches));
            return;
        }
        for batch in &self.batches {
            // SAFETY: D1; set up by `new`, destroyed once, and nothing is in flight.
            unsafe { (self.cufile.table().batch_destroy)(batch.raw) };
        }
    }
}
