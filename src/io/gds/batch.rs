//! Many reads at a time: a batch. It is worth its while for short reads, each of which would cost a call.

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::Arc;

use super::Files;
use super::library::{BatchEvent, BatchRead, RawBatch};
use super::queue::{one_buffer, read_all};
use super::status::{CuFileError, read_result};
use crate::io::{Completion, Queue, Read};

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

/// Reads in flight by the library's batch interface, one submission for each.
pub(super) struct Batch {
    files: Arc<Files>,
    raw: RawBatch,
    /// By ticket: the read that is in flight.
    flights: Vec<Option<Flight>>,
    /// By ticket: what the library was told of it, which may be looked at again while it is in flight.
    entries: Vec<BatchRead>,
    in_flight: usize,
    /// Reads that ended when they were submitted, or were told of together with others.
    ended: Vec<Completion>,
    events: Vec<BatchEvent>,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    file: RawFd,
    start: *mut u8,
    bytes: usize,
    offset: u64,
}

// SAFETY: the batch is a name that the library takes from any thread; the addresses are those of buffers that the submitters lent.
unsafe impl Send for Batch {}

impl Batch {
    pub(super) fn new(files: Arc<Files>, depth: usize) -> io::Result<Self> {
        let depth = depth.min(files.cufile.max_batch()).max(1);
        let mut raw: RawBatch = ptr::null_mut();
        // SAFETY: D1; `raw` is valid for the write.
        unsafe { (files.cufile.table().batch_set_up)(&raw mut raw, depth as c_uint) }
            .check("set up a batch")?;
        let nothing = BatchEvent { cookie: ptr::null_mut(), status: 0, returned: 0 };
        let empty = BatchRead {
            mode: MODE,
            base: ptr::null_mut(),
            file_offset: 0,
            offset: 0,
            bytes: 0,
            file: ptr::null_mut(),
            operation: READ,
            cookie: ptr::null_mut(),
        };
        Ok(Self {
            files,
            raw,
            flights: vec![None; depth],
            entries: vec![empty; depth],
            in_flight: 0,
            ended: Vec::new(),
            events: vec![nothing; depth],
        })
    }

    /// Waits for one read or more to end, and notes them.
    fn wait(&mut self) -> io::Result<()> {
        let mut count = self.events.len() as c_uint;
        // SAFETY: D1; the outputs are valid for the writes of as many events as `count` says; without a time it waits.
        let status = unsafe {
            (self.files.cufile.table().batch_status)(
                self.raw,
                1,
                &raw mut count,
                self.events.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        status.check("say how a batch stands")?;
        for index in 0..(count as usize).min(self.events.len()) {
            let event = self.events[index];
            if matches!(event.status, state::WAITING | state::PENDING) {
                continue;
            }
            let ticket = event.cookie.addr();
            let Some(flight) = self.flights.get_mut(ticket).and_then(Option::take) else { continue };
            self.in_flight -= 1;
            self.ended.push(Completion { ticket, result: self.outcome(flight, event) });
        }
        Ok(())
    }

    /// What became of a read. What stopped short is read on at once: only the end of the file ends a read.
    fn outcome(&self, flight: Flight, event: BatchEvent) -> io::Result<usize> {
        let done = read_result(event.returned, || CuFileError::of_a_read().into())?;
        match event.status {
            state::COMPLETE if done >= flight.bytes => Ok(flight.bytes),
            state::COMPLETE if done == 0 => Ok(0),
            state::COMPLETE => {
                let rest = (flight.start.wrapping_add(done), flight.bytes - done);
                // SAFETY: the read has ended, and its submitter still lends the buffer.
                let more = unsafe { read_all(&self.files, flight.file, rest, flight.offset + done as u64) }?;
                Ok(done + more)
            }
            status => {
                tracing::debug!(status, "a read of a batch ended otherwise than complete");
                Err(CuFileError::of_a_read().into())
            }
        }
    }
}

impl Queue for Batch {
    fn depth(&self) -> usize {
        self.flights.len()
    }

    unsafe fn submit(&mut self, read: Read<'_, '_>) -> io::Result<()> {
        let (start, bytes) = one_buffer(&read)?;
        let (ticket, file, offset) = (read.ticket, read.file.as_raw_fd(), read.offset);
        let free = self.flights.get(ticket).is_some_and(Option::is_none);
        if !free {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the ticket is taken, or beyond the depth",
            ));
        }
        let cufile = &self.files.cufile;
        // Longer ones are for the other interface, unless it goes through the CPU.
        if bytes as u64 > cufile.max_batch_read() {
            // SAFETY: passed on.
            let result = unsafe { read_all(&self.files, file, (start, bytes), offset) };
            self.ended.push(Completion { ticket, result });
            return Ok(());
        }
        let place = cufile.place(start);
        self.entries[ticket] = BatchRead {
            base: place.base,
            file_offset: libc::off_t::try_from(offset).map_err(io::Error::other)?,
            offset: place.offset,
            bytes,
            file: self.files.handle(file)?,
            cookie: ptr::without_provenance_mut(ticket),
            ..self.entries[ticket]
        };
        let entry = &raw mut self.entries[ticket];
        // SAFETY: D1, D2; the caller keeps the buffer until the completion has been taken or this is dropped, which waits. The
        // entry stays where it is for as long.
        unsafe { (cufile.table().batch_submit)(self.raw, 1, entry, 0) }.check("submit a read")?;
        self.flights[ticket] = Some(Flight { file, start, bytes, offset });
        self.in_flight += 1;
        Ok(())
    }

    fn complete(&mut self) -> io::Result<Completion> {
        loop {
            if let Some(completion) = self.ended.pop() {
                return Ok(completion);
            }
            if self.in_flight == 0 {
                return Err(io::Error::other("no read is in flight"));
            }
            self.wait()?;
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if let Err(error) = self.wait() {
                // D4: what they write to stays, and so does the batch.
                tracing::error!(%error, reads = self.in_flight, "cuFile does not say whether reads have ended");
                self.files.cufile.lose();
                // The library may look at them again, and write to the events.
                std::mem::forget(std::mem::take(&mut self.entries));
                return;
            }
        }
        // SAFETY: D1; set up by `new`, destroyed once, and nothing is in flight.
        unsafe { (self.files.cufile.table().batch_destroy)(self.raw) };
    }
}
