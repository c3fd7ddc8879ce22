//! A reader past the page cache, or by cuFile: whole blocks into slots, several reads in flight.
//!
//! A slot holds the blocks that contain a job's bytes. From there they are copied to the device or, if the
//! CPU can write the target, moved to their places. The slots of cuFile readers are on the device; copies
//! within the device empty them.

use std::io;
use std::mem;
use std::time::Instant;

use super::buffered_read::{self, read_error};
use super::context::ReadContext;
use super::cufile::CuFileSession;
use super::job_queue::{JobQueue, ReaderKind};
use super::queue_depth::QueueDepth;
use super::route::{ReadRoute, refusal};
use super::scatter::{BlockRange, SlotLayout, SourceLayout};
use super::stats::{Stage, StageTimer};
use super::transform;
use crate::error::{Error, Result};
use crate::io::descriptor_cache::is_full;
use crate::io::retries::Retries;
use crate::io::{
    Access, Backend, BackendKind, Completion, FileLease, Queue, Read, WhenFull, buffer_at, too_many,
};
use crate::loader::plan::Job;
use crate::loader::staging::{FIRST_SLOTS, ReaderSlots};

/// A job and its slot.
#[derive(Debug, Clone, Copy)]
struct AssignedJob {
    index: usize,
    slot: usize,
}

/// A read in flight.
#[derive(Debug)]
struct InFlightRead {
    assigned: AssignedJob,
    file: FileLease,
    blocks: BlockRange,
    /// Bytes read from the start of the first block; a multiple of the alignment.
    done: u64,
    retries: Retries,
}

/// The outcome of opening a job's file.
enum OpenOutcome<'a> {
    Open(&'a Access, FileLease),
    /// All descriptors are in use, some of them by reads in flight.
    Later,
    /// The file does not support direct reads.
    Refused(Error),
    /// cuFile, or the system, refuses to open it for cuFile.
    RefusedByCuFile(io::Error),
}

struct DirectReader<'a> {
    context: &'a ReadContext<'a>,
    job_queue: &'a JobQueue<'a>,
    /// Set if cuFile reads.
    cufile: Option<&'a CuFileSession>,
    // Dropped before the slots that its reads write to.
    queue: Box<dyn Queue>,
    slots: ReaderSlots<'a>,
    timer: StageTimer<'a>,
    /// By ticket, which is the number of the slot. Dropped after the queue, since they keep its files open.
    flights: Vec<Option<InFlightRead>>,
    in_flight: usize,
    /// Jobs to read through the page cache when nothing is in flight, since that may wait for a descriptor
    /// (F4).
    fallback: Vec<AssignedJob>,
    depth: QueueDepth,
    /// By slot: whether it is registered with the queue. Slots are not acquired in the order of their
    /// numbers.
    prepared: Vec<bool>,
}

/// Reads jobs past the page cache, or by cuFile, until none are left.
pub(super) fn run(
    context: &ReadContext<'_>,
    job_queue: &JobQueue<'_>,
    queue: Box<dyn Queue>,
    cufile: Option<&CuFileSession>,
) -> Result<()> {
    let slot_count = queue.depth().max(FIRST_SLOTS);
    let mut timer = context.stage_totals.timer();
    // cuFile requires the device's context on this thread.
    let _current = cufile.map(|_| context.device.make_current()).transpose()?;
    let depth = QueueDepth::new(queue.depth(), context.tuning.job_bytes);
    let slots = match cufile {
        Some(cufile) => cufile.open_slots(context.device, queue.depth())?,
        None => context.open_slots(job_queue, slot_count, depth.get())?,
    };
    let Some(slots) = slots else { return Ok(()) };
    let flights = (0..slot_count).map(|_| None).collect();
    let (fallback, prepared) = (Vec::new(), vec![false; slot_count]);
    timer.lap(Stage::Open);
    let mut reader = DirectReader {
        context,
        job_queue,
        cufile,
        queue,
        slots,
        timer,
        flights,
        in_flight: 0,
        fallback,
        depth,
        prepared,
    };
    let passed = reader.run();
    let DirectReader { queue, slots, mut timer, flights, .. } = reader;
    // Waits for the reads in flight: then no one writes to the slots or reads the files.
    drop(queue);
    drop(flights);
    let finished = slots.finish(|job| job_queue.landed(job));
    timer.lap(Stage::Finish);
    passed.and(finished)
}

impl<'a> DirectReader<'a> {
    fn run(&mut self) -> Result<()> {
        let mut taken = None;
        loop {
            // Jobs in `fallback` wait for the end of the reads in flight, so no new ones start.
            while self.in_flight < self.depth.get() && self.fallback.is_empty() {
                let Some(index) = taken.take().or_else(|| self.next()) else {
                    break;
                };
                let Some(slot) = self.slots.acquire(|job| self.job_queue.landed(job))? else {
                    taken = Some(index);
                    break;
                };
                self.timer.lap(Stage::Wait);
                if !self.begin(AssignedJob { index, slot })? {
                    self.slots.release(slot);
                    taken = Some(index);
                    break;
                }
            }
            if self.in_flight > 0 {
                let completion = self.queue.complete().map_err(|error| self.queue_failed(&error))?;
                self.timer.lap(Stage::Read);
                self.ended(completion)?;
                self.timer.lap(Stage::Send);
            } else if let Some(assigned) = self.fallback.pop() {
                self.read_buffered(assigned)?;
            } else if taken.is_none() {
                return Ok(());
            }
        }
    }

    /// The next job. `None` if cuFile has refused a read: others read the remaining jobs.
    fn next(&self) -> Option<usize> {
        match self.cufile {
            Some(cufile) if cufile.is_refused() => None,
            Some(_) => self.job_queue.next_direct(ReaderKind::CuFile, self.in_flight == 0),
            None => self.job_queue.next_direct(ReaderKind::Direct, self.in_flight == 0),
        }
    }

    /// Opens the file of a job. Waits for a descriptor only while this reader holds none (F4).
    fn open(&self, job: &Job) -> OpenOutcome<'a> {
        let (context, when_full) =
            (self.context, if self.in_flight == 0 { WhenFull::Wait } else { WhenFull::Refuse });
        let access = match self.cufile {
            Some(cufile) => cufile.access(job),
            None => match context.routes.direct(job.file, when_full) {
                Ok(Some(access)) => access,
                Ok(None) => return OpenOutcome::Later,
                Err(error) => return OpenOutcome::Refused(error),
            },
        };
        match access.file.lease(when_full) {
            Ok(file) => OpenOutcome::Open(access, file),
            Err(error) if is_full(&error) => OpenOutcome::Later,
            Err(error) if self.cufile.is_some() => OpenOutcome::RefusedByCuFile(error),
            Err(error) => OpenOutcome::Refused(context.routes.refused(job.file, &error)),
        }
    }

    /// Starts a read of a job's blocks. `false` if the caller has to try again after a read in flight has
    /// ended.
    fn begin(&mut self, assigned: AssignedJob) -> Result<bool> {
        let job = &self.context.scatter.plan.jobs[assigned.index];
        match self.open(job) {
            OpenOutcome::Open(access, file) => {
                let blocks = BlockRange::of(job, access.alignment);
                self.submit(InFlightRead { assigned, file, blocks, done: 0, retries: Retries::default() })?;
            }
            OpenOutcome::Later => return Ok(false),
            OpenOutcome::Refused(error) => self.fall_back(assigned, job, error)?,
            OpenOutcome::RefusedByCuFile(error) => self.refused(assigned, job, &error)?,
        }
        Ok(true)
    }

    /// Submits a read of the blocks that have not been read yet.
    fn submit(&mut self, flight: InFlightRead) -> Result<()> {
        let InFlightRead { assigned, blocks, done, .. } = flight;
        let job = &self.context.scatter.plan.jobs[assigned.index];
        let flight = self.flights[assigned.slot].insert(flight);
        let start = self.slots.start(assigned.slot);
        if !mem::replace(&mut self.prepared[assigned.slot], true) {
            // SAFETY: the slots stay allocated and are dropped after the queue.
            unsafe { self.queue.prepare(assigned.slot, start, self.slots.slot_bytes() as usize) };
        }
        // SAFETY: a slot is as long as the longest span and two blocks, so the blocks lie within it. It is
        // this reader's, in memory that this queue accepts: its bytes are initialized (M2), or it is the
        // device's and the queue is cuFile's.
        let buffer = unsafe { buffer_at(start.wrapping_add(done as usize), (blocks.bytes - done) as usize) };
        let read = Read {
            ticket: assigned.slot,
            file: &flight.file,
            offset: blocks.start + done,
            buffers: &mut [buffer],
            cached_only: false,
        };
        // SAFETY: the slot is not accessed before the completion is taken, and is dropped after the queue. So
        // are the flights, whose leases keep the file open.
        if let Err(error) = unsafe { self.queue.submit(read) } {
            return match self.cufile {
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

    /// Handles a read that has ended.
    fn ended(&mut self, completion: Completion) -> Result<()> {
        let flight = self.flights.get_mut(completion.ticket).and_then(Option::take);
        let Some(flight) = flight else { return Ok(()) };
        self.in_flight -= 1;
        let (assigned, blocks) = (flight.assigned, flight.blocks);
        let job = &self.context.scatter.plan.jobs[assigned.index];
        match completion.result {
            Ok(bytes) if bytes as u64 > blocks.bytes - flight.done => {
                let asked = (blocks.bytes - flight.done) as usize;
                Err(read_error(self.context, job, too_many(bytes, asked)))
            }
            Ok(bytes) => {
                self.depth.ended(bytes as u64, Instant::now());
                let done = flight.done + bytes as u64;
                if done >= blocks.head + job.file_bytes {
                    return self.arrived(assigned, job, blocks.head);
                }
                if bytes == 0 {
                    return Err(self.context.cut_short(job, blocks.start + done));
                }
                // The next read has to begin at a block.
                let whole = done - done % blocks.alignment;
                match whole > flight.done {
                    true => self.submit(InFlightRead { done: whole, retries: Retries::default(), ..flight }),
                    false => self.ended_within_a_block(flight, job, blocks.start + done),
                }
            }
            Err(error) if self.is_refusal(&error) => self.refused(assigned, job, &error),
            Err(error) => {
                let InFlightRead { mut retries, .. } = flight;
                match retries.allow(&error) {
                    true => self.submit(InFlightRead { retries, ..flight }),
                    false => Err(read_error(self.context, job, retries.explain(error))),
                }
            }
        }
    }

    /// Handles a read that ended within a block, before the end of the job's bytes. A file that was truncated
    /// ends like that, which is an error. Otherwise the rest is read again and, if that does not help,
    /// through the page cache.
    fn ended_within_a_block(&mut self, flight: InFlightRead, job: &Job, end: u64) -> Result<()> {
        self.context.files[job.file].source.check_unchanged()?;
        let InFlightRead { mut retries, .. } = flight;
        if retries.allow_part() {
            return self.submit(InFlightRead { retries, ..flight });
        }
        let problem =
            format!("reads past the page cache end at {end}, within a block and before the file does");
        let error = retries.explain(io::Error::other(problem));
        match self.cufile {
            Some(_) => self.refused(flight.assigned, job, &error),
            None => self.fall_back(flight.assigned, job, read_error(self.context, job, error)),
        }
    }

    /// The error for a queue that stopped working.
    fn queue_failed(&self, error: &io::Error) -> Error {
        let kind = if self.cufile.is_some() { BackendKind::Gds } else { BackendKind::IoUring };
        self.context.queue_refused(kind, error)
    }

    /// Whether an error means that the system, or cuFile, does not support the read, rather than that the
    /// read failed.
    fn is_refusal(&self, error: &io::Error) -> bool {
        is_refusal(error) || self.cufile.is_some() && CuFileSession::is_refusal(error)
    }

    /// Handles a read that was refused: its job takes another route, if that is allowed.
    fn refused(&mut self, assigned: AssignedJob, job: &Job, error: &io::Error) -> Result<()> {
        let Some(cufile) = self.cufile else {
            let refused = self.context.routes.refused(job.file, error);
            return self.fall_back(assigned, job, refused);
        };
        if self.context.tuning.backend != Backend::Auto {
            return Err(refusal(BackendKind::Gds, &self.context.files[job.file].source, error));
        }
        tracing::debug!(%error, "cuFile refuses a read, and is left");
        cufile.refuse();
        self.slots.release(assigned.slot);
        self.job_queue.defer(assigned.index);
        Ok(())
    }

    /// Handles a job whose bytes lie in its slot on the device, packed from `head` on.
    fn arrived_on_device(&mut self, assigned: AssignedJob, job: &Job, head: u64) -> Result<()> {
        self.job_queue.count_gds(job);
        if job.transform.is_some() {
            // A kernel transforms: cuFile is not used where the CPU has to.
            return self.arrived_transformed(assigned, job, head);
        }
        let (to, mut from) = (self.context.scatter.address(job)?, head);
        let moves = self.context.scatter.plan.pieces_of(job).iter().map(|piece| {
            let start = from;
            from += piece.bytes;
            (start, to.wrapping_add(piece.offset as usize), piece.bytes)
        });
        // SAFETY: the slot holds the job's bytes; P2: the pieces lie within the span. W1 and W2 as in
        // `arrived`.
        unsafe { self.slots.spread(assigned.slot, moves, assigned.index) }
    }

    /// Handles a job whose bytes lie in its slot, packed from `head` on.
    fn arrived(&mut self, assigned: AssignedJob, job: &Job, head: u64) -> Result<()> {
        if self.cufile.is_some() {
            return self.arrived_on_device(assigned, job, head);
        }
        self.job_queue.count(job, ReadRoute::Direct);
        if job.transform.is_some() {
            return self.arrived_transformed(assigned, job, head);
        }
        let start = self.slots.start(assigned.slot);
        if self.context.in_place() {
            // SAFETY: the slot holds the job's bytes; W1: no one else accesses their places.
            unsafe { self.context.scatter.place(job, start, SlotLayout::Packed(head)) }?;
            self.slots.release(assigned.slot);
            self.job_queue.landed(assigned.index);
            return Ok(());
        }
        let to = self.context.scatter.address(job)?;
        // SAFETY: as above; the slot is as long as the longest span and two blocks. W1, P2 and W2 as for
        // buffered reads.
        unsafe {
            self.context.scatter.spread(job, start, head);
            self.slots.send(assigned.slot, head, to, job.span, assigned.index)
        }
    }

    /// Handles a transformed job whose span of the file lies in its slot, from `head` on.
    fn arrived_transformed(&mut self, assigned: AssignedJob, job: &Job, head: u64) -> Result<()> {
        let (scatter, start) = (&self.context.scatter, self.slots.start(assigned.slot));
        let (from, to) = (start.wrapping_add(head as usize), scatter.address(job)?);
        if self.context.in_place() {
            // SAFETY: the slot holds the job's bytes; W1: no one else accesses their place.
            unsafe { transform::transform_on_cpu(self.context, job, from, SourceLayout::AsInFile, to) }?;
            self.slots.release(assigned.slot);
            self.job_queue.landed(assigned.index);
            return Ok(());
        }
        // Also blocks that buffered readers leave dense: here the runs lie among their rows.
        if scatter.transforms.on_device {
            let (jobs, counters) =
                (std::slice::from_ref(job), scatter.device_counters(self.context.conversion_stats, job));
            let transform = scatter.transform(jobs, from, SourceLayout::AsInFile, to, counters);
            let Some(transform) = transform else { return Ok(()) };
            // SAFETY: P4, P5: as for copies. The counters outlive the readers.
            return unsafe { self.slots.transform(assigned.slot, &transform, assigned.index) };
        }
        let offset = transform::offset_after(job, head);
        if offset + job.span > self.slots.slot_bytes() {
            return Err(self.context.without_scratch(job));
        }
        // SAFETY: P5: the slot has room for both, and is this reader's.
        unsafe {
            transform::transform_on_cpu(
                self.context,
                job,
                from,
                SourceLayout::AsInFile,
                start.wrapping_add(offset as usize),
            )
        }?;
        // SAFETY: as for other copies.
        unsafe { self.slots.send(assigned.slot, offset, to, job.span, assigned.index) }
    }

    /// Has a job read through the page cache instead, if that is allowed.
    fn fall_back(&mut self, assigned: AssignedJob, job: &Job, refused: Error) -> Result<()> {
        if !self.context.routes.refuse_direct(job.file) {
            return Err(refused);
        }
        self.fallback.push(assigned);
        Ok(())
    }

    /// Reads a job through the page cache, while nothing is in flight.
    fn read_buffered(&mut self, assigned: AssignedJob) -> Result<()> {
        let job = &self.context.scatter.plan.jobs[assigned.index];
        let buffered = &self.context.engines.buffered;
        let mut queue =
            buffered.queue(1).map_err(|error| self.context.queue_refused(BackendKind::Buffered, &error))?;
        let start = self.slots.start(assigned.slot);
        // SAFETY: the slot is as long as the longest span, and this reader's.
        unsafe { buffered_read::read_job(self.context, &mut *queue, job, start, ReadRoute::Buffered) }?;
        if job.transform.is_some() {
            self.job_queue.count_span(job);
            return self.arrived_transformed(assigned, job, 0);
        }
        self.job_queue.count(job, ReadRoute::Buffered);
        if self.context.in_place() {
            // SAFETY: as in `arrived`.
            unsafe { self.context.scatter.place(job, start, SlotLayout::Spread) }?;
            self.slots.release(assigned.slot);
            self.job_queue.landed(assigned.index);
            return Ok(());
        }
        let to = self.context.scatter.address(job)?;
        // SAFETY: as in `arrived`.
        unsafe { self.slots.send(assigned.slot, 0, to, job.span, assigned.index) }
    }
}

/// Whether an error means that the system does not support the read, rather than that the read failed.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS))
}
