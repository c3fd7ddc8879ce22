//! A reader past the page cache: whole blocks into the slots of a lane, several reads in flight.
//!
//! A slot takes the blocks that a job's bytes lie in. From there they are copied to the device or, where the CPU can write
//! the target, moved to their places. Slots of readers by cuFile are on the device, and emptied by copies within it.

use std::io;
use std::mem;
use std::time::Instant;

use super::depth::Depth;
use super::fill::Fill;
use super::gds::ByCuFile;
use super::landing::{Form, PartForm};
use super::lane::{FIRST_SLOTS, Lane};
use super::plan::Job;
use super::remake;
use super::route::{Way, refusal};
use super::stopwatch::{Stage, Stopwatch};
use super::through::{self, read_error};
use super::work::{Role, Work};
use crate::error::{Error, Result};
use crate::io::descriptor_cache::is_full;
use crate::io::retries::Retries;
use crate::io::{
    Access, Backend, BackendKind, Completion, FileLease, Queue, Read, WhenFull, buffer_at, too_many,
};

/// A job, and the slot that it is read into.
#[derive(Debug, Clone, Copy)]
struct Assigned {
    index: usize,
    slot: usize,
}

/// A job whose blocks are being read.
#[derive(Debug)]
struct Flight {
    assigned: Assigned,
    file: FileLease,
    blocks: Blocks,
    /// Bytes read, from the first block's start on; a multiple of the alignment.
    done: u64,
    retries: Retries,
}

/// What came of opening a job's file.
enum Opening<'a> {
    Open(&'a Access, FileLease),
    /// All descriptors are in use, also by reads in flight.
    Later,
    /// The file is not read past the page cache.
    Refused(Error),
    /// cuFile, or the system, refuses to open it for cuFile.
    RefusedByCuFile(io::Error),
}

struct Reader<'a> {
    fill: &'a Fill<'a>,
    work: &'a Work<'a>,
    /// What reads, if that is cuFile.
    gds: Option<&'a ByCuFile>,
    // Dropped before the lane, whose slots its reads go to.
    queue: Box<dyn Queue>,
    lane: Lane<'a>,
    watch: Stopwatch<'a>,
    /// By ticket, which is the slot's number. Dropped after the queue, since they keep its files open.
    flights: Vec<Option<Flight>>,
    in_flight: usize,
    /// Jobs to be read through the page cache after all, when nothing is in flight: that waits for a descriptor (F4).
    through: Vec<Assigned>,
    depth: Depth,
    /// By slot: whether the queue knows of it. Slots do not come in the order of their numbers.
    prepared: Vec<bool>,
}

/// Takes jobs that are to be read past the page cache, or by cuFile, until there are no more.
pub(super) fn read(
    fill: &Fill<'_>,
    work: &Work<'_>,
    queue: Box<dyn Queue>,
    gds: Option<&ByCuFile>,
) -> Result<()> {
    let slots = queue.depth().max(FIRST_SLOTS);
    let mut watch = fill.totals.watch();
    // Calls of cuFile want the device's context.
    let _current = gds.map(|gds| gds.make_current(fill)).transpose()?;
    let depth = Depth::new(queue.depth(), fill.readers.job_bytes);
    let lane = match gds {
        Some(gds) => gds.open_lane(fill, queue.depth())?,
        None => fill.open_lane(work, slots, depth.get())?,
    };
    let Some(lane) = lane else { return Ok(()) };
    let flights = (0..slots).map(|_| None).collect();
    let (through, prepared) = (Vec::new(), vec![false; slots]);
    watch.lap(Stage::Open);
    let mut reader =
        Reader { fill, work, gds, queue, lane, watch, flights, in_flight: 0, through, depth, prepared };
    let passed = reader.run();
    let Reader { queue, lane, mut watch, flights, .. } = reader;
    // Waits for the reads in flight; after that no one writes to the slots, or reads the files.
    drop(queue);
    drop(flights);
    let finished = lane.finish(|job| work.landed(job));
    watch.lap(Stage::Finish);
    passed.and(finished)
}

impl<'a> Reader<'a> {
    fn run(&mut self) -> Result<()> {
        let mut taken = None;
        loop {
            // No more are begun while some wait for the end of those in flight.
            while self.in_flight < self.depth.get() && self.through.is_empty() {
                let Some(index) = taken.take().or_else(|| self.next()) else {
                    break;
                };
                let Some(slot) = self.lane.acquire(|job| self.work.landed(job))? else {
                    taken = Some(index);
                    break;
                };
                self.watch.lap(Stage::Wait);
                if !self.begin(Assigned { index, slot })? {
                    self.lane.release(slot);
                    taken = Some(index);
                    break;
                }
            }
            if self.in_flight > 0 {
                let completion = self.queue.complete().map_err(|error| self.queue_failed(&error))?;
                self.watch.lap(Stage::Read);
                self.ended(completion)?;
                self.watch.lap(Stage::Send);
            } else if let Some(assigned) = self.through.pop() {
                self.read_through(assigned)?;
            } else if taken.is_none() {
                return Ok(());
            }
        }
    }

    /// The next job, unless cuFile has refused one: then others read what is left.
    fn next(&self) -> Option<usize> {
        match self.gds {
            Some(gds) if gds.is_refused() => None,
            Some(_) => self.work.next_past(Role::ByCuFile, self.in_flight == 0),
            None => self.work.next_past(Role::Past, self.in_flight == 0),
        }
    }

    /// Opens the file of a job for what reads it. Waits for a descriptor only while this reader has none (F4).
    fn open(&self, job: &Job) -> Opening<'a> {
        let (fill, when_full) =
            (self.fill, if self.in_flight == 0 { WhenFull::Wait } else { WhenFull::Refuse });
        let access = match self.gds {
            Some(gds) => gds.access(job),
            None => match fill.routes.past(job.file, when_full) {
                Ok(Some(access)) => access,
                Ok(None) => return Opening::Later,
                Err(error) => return Opening::Refused(error),
            },
        };
        match access.file.lease(when_full) {
            Ok(file) => Opening::Open(access, file),
            Err(error) if is_full(&error) => Opening::Later,
            Err(error) if self.gds.is_some() => Opening::RefusedByCuFile(error),
            Err(error) => Opening::Refused(fill.routes.refused(job.file, &error)),
        }
    }

    /// Starts a read of a job's blocks; `false` if it has to be begun again when one in flight has ended.
    fn begin(&mut self, assigned: Assigned) -> Result<bool> {
        let job = &self.fill.landing.plan.jobs[assigned.index];
        match self.open(job) {
            Opening::Open(access, file) => {
                let blocks = Blocks::of(job, access);
                self.submit(Flight { assigned, file, blocks, done: 0, retries: Retries::default() })?;
            }
            Opening::Later => return Ok(false),
            Opening::Refused(error) => self.without(assigned, job, error)?,
            Opening::RefusedByCuFile(error) => self.refused(assigned, job, &error)?,
        }
        Ok(true)
    }

    /// Starts a read of a flight's blocks, or of the remaining ones.
    fn submit(&mut self, flight: Flight) -> Result<()> {
        let Flight { assigned, blocks, done, .. } = flight;
        let job = &self.fill.landing.plan.jobs[assigned.index];
        let flight = self.flights[assigned.slot].insert(flight);
        let start = self.lane.start(assigned.slot);
        if !mem::replace(&mut self.prepared[assigned.slot], true) {
            // SAFETY: the lane keeps its slots and is dropped after the queue.
            unsafe { self.queue.prepare(assigned.slot, start, self.lane.slot_bytes() as usize) };
        }
        // SAFETY: a slot is as long as the longest span and two blocks more, so the blocks lie within it; it is ours, and
        // in memory that this queue takes: its bytes have values (M2), or it is the device's and the queue cuFile's.
        let buffer = unsafe { buffer_at(start.wrapping_add(done as usize), (blocks.bytes - done) as usize) };
        let read = Read {
            ticket: assigned.slot,
            file: &flight.file,
            offset: blocks.start + done,
            buffers: &mut [buffer],
            cached_only: false,
        };
        // SAFETY: the slot is not touched before the completion has been taken, and the lane that keeps it is dropped
        // after the queue. So are the flights, whose leases keep the file open.
        if let Err(error) = unsafe { self.queue.submit(read) } {
            return match self.gds {
                Some(_) => {
                    self.flights[assigned.slot] = None;
                    self.refused(assigned, job, &error)
                }
                None => Err(self.queue_failed(&error)),
            };
        }
        self.in_flight += 1;
        Ok(())
    }

    fn ended(&mut self, completion: Completion) -> Result<()> {
        let flight = self.flights.get_mut(completion.ticket).and_then(Option::take);
        let Some(flight) = flight else { return Ok(()) };
        self.in_flight -= 1;
        let (assigned, blocks) = (flight.assigned, flight.blocks);
        let job = &self.fill.landing.plan.jobs[assigned.index];
        match completion.result {
            Ok(bytes) if bytes as u64 > blocks.bytes - flight.done => {
                let asked = (blocks.bytes - flight.done) as usize;
                Err(read_error(self.fill, job, too_many(bytes, asked)))
            }
            Ok(bytes) => {
                self.depth.ended(bytes as u64, Instant::now());
                let done = flight.done + bytes as u64;
                if done >= blocks.head + job.file_bytes {
                    return self.arrived(assigned, job, blocks.head);
                }
                if bytes == 0 {
                    return Err(self.fill.cut_short(job, blocks.start + done));
                }
                // The next read has to begin where a block does.
                let whole = done - done % blocks.alignment;
                match whole > flight.done {
                    true => self.submit(Flight { done: whole, retries: Retries::default(), ..flight }),
                    false => self.ended_within_a_block(flight, job, blocks.start + done),
                }
            }
            Err(error) if self.is_refusal(&error) => self.refused(assigned, job, &error),
            Err(error) => {
                let Flight { mut retries, .. } = flight;
                match retries.allow(&error) {
                    true => self.submit(Flight { retries, ..flight }),
                    false => Err(read_error(self.fill, job, retries.explain(error))),
                }
            }
        }
    }

    /// A read brought a part of a block, though the job has more bytes behind it. A file that was cut short ends like that, and
    /// then it is another; else the rest is read once more and, where that does not help, through the page cache.
    fn ended_within_a_block(&mut self, flight: Flight, job: &Job, end: u64) -> Result<()> {
        self.fill.files[job.file].source.check_unchanged()?;
        let Flight { mut retries, .. } = flight;
        if retries.allow_part() {
            return self.submit(Flight { retries, ..flight });
        }
        let problem =
            format!("reads past the page cache end at {end}, within a block and before the file does");
        let error = retries.explain(io::Error::other(problem));
        match self.gds {
            Some(_) => self.refused(flight.assigned, job, &error),
            None => self.without(flight.assigned, job, read_error(self.fill, job, error)),
        }
    }

    /// The error for a queue that stopped working.
    fn queue_failed(&self, error: &io::Error) -> Error {
        let kind = if self.gds.is_some() { BackendKind::Gds } else { BackendKind::IoUring };
        self.fill.queue_refused(kind, error)
    }

    /// Whether the system, or cuFile, says that it does not read like this, rather than that the read failed.
    fn is_refusal(&self, error: &io::Error) -> bool {
        is_refusal(error) || self.gds.is_some() && ByCuFile::is_refusal(error)
    }

    /// A read was refused: its job goes another way, if that is allowed.
    fn refused(&mut self, assigned: Assigned, job: &Job, error: &io::Error) -> Result<()> {
        let Some(gds) = self.gds else {
            let refused = self.fill.routes.refused(job.file, error);
            return self.without(assigned, job, refused);
        };
        if self.fill.readers.backend != Backend::Auto {
            return Err(refusal(BackendKind::Gds, &self.fill.files[job.file].source, error));
        }
        tracing::debug!(%error, "cuFile refuses a read, and is left");
        gds.refuse();
        self.lane.release(assigned.slot);
        self.work.leave(assigned.index);
        Ok(())
    }

    /// The job's bytes lie in its slot on the device, packed from `head` on.
    fn arrived_on_device(&mut self, assigned: Assigned, job: &Job, head: u64) -> Result<()> {
        self.work.count_gds(job);
        if job.part.is_some() {
            // By a kernel: cuFile is left alone where the CPU would have to see the bytes.
            return self.arrived_part(assigned, job, head);
        }
        let (to, mut from) = (self.fill.landing.address(job)?, head);
        let moves = self.fill.landing.plan.pieces_of(job).iter().map(|piece| {
            let start = from;
            from += piece.bytes;
            (start, to.wrapping_add(piece.offset as usize), piece.bytes)
        });
        // SAFETY: the slot holds the job's bytes; P2: the pieces lie within the span. W1 and W2 as in `arrived`.
        unsafe { self.lane.spread(assigned.slot, moves, assigned.index) }
    }

    /// The job's bytes lie in its slot, packed from `head` on.
    fn arrived(&mut self, assigned: Assigned, job: &Job, head: u64) -> Result<()> {
        if self.gds.is_some() {
            return self.arrived_on_device(assigned, job, head);
        }
        self.work.count(job, Way::Past);
        if job.part.is_some() {
            return self.arrived_part(assigned, job, head);
        }
        let start = self.lane.start(assigned.slot);
        if self.fill.in_place() {
            // SAFETY: the slot holds the job's bytes; W1: no one else touches their places.
            unsafe { self.fill.landing.place(job, start, Form::Packed(head)) }?;
            self.lane.release(assigned.slot);
            self.work.landed(assigned.index);
            return Ok(());
        }
        let to = self.fill.landing.address(job)?;
        // SAFETY: as above; the slot is as long as the longest span and two blocks more. W1, P2 and W2 as for reads
        // through the page cache.
        unsafe {
            self.fill.landing.spread(job, start, head);
            self.lane.send(assigned.slot, head, to, job.span, assigned.index)
        }
    }

    /// What a job has of a changed tensor lies in its slot, as in the file, from `head` on.
    fn arrived_part(&mut self, assigned: Assigned, job: &Job, head: u64) -> Result<()> {
        let (landing, start) = (&self.fill.landing, self.lane.start(assigned.slot));
        let (from, to) = (start.wrapping_add(head as usize), landing.address(job)?);
        if self.fill.in_place() {
            // SAFETY: the slot holds the job's bytes; W1: no one else touches their place.
            unsafe { remake::transform(self.fill, job, from, PartForm::AsInFile, to) }?;
            self.lane.release(assigned.slot);
            self.work.landed(assigned.index);
            return Ok(());
        }
        // Also what readers through the page cache would leave as it is: here it lies among its rows.
        if landing.changes.on_device {
            let (jobs, counters) = (std::slice::from_ref(job), self.fill.device_counters(job));
            let transform = landing.transform(jobs, from, PartForm::AsInFile, to, counters);
            let Some(transform) = transform else { return Ok(()) };
            // SAFETY: P4, P5: as for copies. The counters outlive the fill.
            return unsafe { self.lane.transform(assigned.slot, &transform, assigned.index) };
        }
        let behind = remake::behind(job, head);
        if behind + job.span > self.lane.slot_bytes() {
            return Err(self.fill.without_scratch(job));
        }
        // SAFETY: P5: the slot has room for both, and is this reader's.
        unsafe {
            remake::transform(self.fill, job, from, PartForm::AsInFile, start.wrapping_add(behind as usize))
        }?;
        // SAFETY: as for other copies.
        unsafe { self.lane.send(assigned.slot, behind, to, job.span, assigned.index) }
    }

    /// Has a job read through the page cache after all, if that is allowed.
    fn without(&mut self, assigned: Assigned, job: &Job, refused: Error) -> Result<()> {
        if !self.fill.routes.refuse_past(job.file) {
            return Err(refused);
        }
        self.through.push(assigned);
        Ok(())
    }

    /// Reads a job through the page cache. Nothing is in flight.
    fn read_through(&mut self, assigned: Assigned) -> Result<()> {
        let job = &self.fill.landing.plan.jobs[assigned.index];
        let buffered = &self.fill.engines.buffered;
        let mut queue =
            buffered.queue(1).map_err(|error| self.fill.queue_refused(BackendKind::Buffered, &error))?;
        let start = self.lane.start(assigned.slot);
        // SAFETY: the slot is as long as the longest span, and ours.
        unsafe { through::read_job(self.fill, &mut *queue, job, start, Way::Buffered) }?;
        if job.part.is_some() {
            self.work.count_whole(job);
            return self.arrived_part(assigned, job, 0);
        }
        self.work.count(job, Way::Buffered);
        if self.fill.in_place() {
            // SAFETY: as in `arrived`.
            unsafe { self.fill.landing.place(job, start, Form::Spread) }?;
            self.lane.release(assigned.slot);
            self.work.landed(assigned.index);
            return Ok(());
        }
        let to = self.fill.landing.address(job)?;
        // SAFETY: as in `arrived`.
        unsafe { self.lane.send(assigned.slot, 0, to, job.span, assigned.index) }
    }
}

/// The blocks that a job's bytes lie in.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    /// Offset of the first one in the file.
    start: u64,
    /// Where the job's bytes begin in it.
    head: u64,
    /// Length of them all.
    bytes: u64,
    /// Reads begin at its multiples.
    alignment: u64,
}

impl Blocks {
    fn of(job: &Job, access: &Access) -> Self {
        let alignment = access.alignment;
        let head = job.file_offset % alignment;
        let bytes = (head + job.file_bytes).next_multiple_of(alignment);
        Self { start: job.file_offset - head, head, bytes, alignment }
    }
}

/// Whether the system says that it does not read like this, rather than that the read failed.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS))
}
