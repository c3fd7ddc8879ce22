//! An engine with faults, for tests: it reads as another does, and then tells of some reads what they did not do.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::{Access, Completion, Engine, FileSource, Queue, Read, WhenFull, address};

/// What is wrong with a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It returns at most so many bytes.
    Short(usize),
    /// It fails with this error of the system.
    Errno(i32),
    /// It is said to be whole, and has bytes of its own start behind the first so many, as `io_uring` makes them of a read on
    /// FUSE that ends there.
    Stitched(usize),
    /// It is said to have brought a byte more than there is room for.
    Long,
}

/// Keeps reads from ending until it is opened.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn pass(&self) {
        drop(self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
    }
}

/// Which reads are wrong.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// This error at each open.
    pub(crate) open: Option<i32>,
    /// This error when a queue is made.
    pub(crate) queue: Option<i32>,
    /// By the number of the read, counted over all queues.
    pub(crate) reads: BTreeMap<u64, Fault>,
    /// Every read that has no fault of its own.
    pub(crate) every_read: Option<Fault>,
    /// Whether reads that must not wait are said to have found nothing.
    pub(crate) nothing_cached: bool,
    /// What all reads wait for.
    pub(crate) gate: Option<Arc<Gate>>,
}

/// An engine with faults.
#[derive(Debug)]
pub(crate) struct Faulty<E> {
    engine: E,
    faults: Arc<Faults>,
    reads: Arc<AtomicU64>,
    /// Reads in flight, over all queues.
    pub(crate) in_flight: Arc<AtomicU64>,
}

impl<E: Engine> Faulty<E> {
    pub(crate) fn new(engine: E, faults: Faults) -> Self {
        Self { engine, faults: Arc::new(faults), reads: Arc::default(), in_flight: Arc::default() }
    }

    /// How many reads were started.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

fn fails(errno: Option<i32>) -> io::Result<()> {
    errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

impl<E: Engine> Engine for Faulty<E> {
    fn open(&self, file: &FileSource, when_full: WhenFull) -> io::Result<Access> {
        fails(self.faults.open)?;
        self.engine.open(file, when_full)
    }

    fn check_trust(&self, file: &FileSource) -> io::Result<()> {
        self.engine.check_trust(file)
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn Queue>> {
        fails(self.faults.queue)?;
        let queue = self.engine.queue(depth)?;
        Ok(Box::new(FaultyQueue {
            queue,
            faults: Arc::clone(&self.faults),
            reads: Arc::clone(&self.reads),
            in_flight: Arc::clone(&self.in_flight),
            flights: Mutex::default(),
        }))
    }
}

struct FaultyQueue {
    queue: Box<dyn Queue>,
    faults: Arc<Faults>,
    reads: Arc<AtomicU64>,
    in_flight: Arc<AtomicU64>,
    /// By ticket.
    flights: Mutex<BTreeMap<usize, Flight>>,
}

/// A read in flight.
struct Flight {
    /// Counted over all queues.
    number: u64,
    /// It must not wait.
    cached_only: bool,
    /// Where its first buffer is, as a number, and how long.
    start: usize,
    first_bytes: usize,
    /// Bytes of all its buffers.
    bytes: usize,
}

impl Queue for FaultyQueue {
    fn depth(&self) -> usize {
        self.queue.depth()
    }

    unsafe fn prepare(&mut self, ticket: usize, start: *mut u8, bytes: usize) {
        // SAFETY: passed on.
        unsafe { self.queue.prepare(ticket, start, bytes) }
    }

    unsafe fn submit(&mut self, read: Read<'_, '_>) -> io::Result<()> {
        let number = self.reads.fetch_add(1, Ordering::Relaxed);
        let (start, first_bytes) = read.buffers.first().map_or((std::ptr::null_mut(), 0), address);
        let bytes = read.buffers.iter().map(|buffer| address(buffer).1).sum();
        let cached_only = read.cached_only;
        let flight = Flight { number, cached_only, start: start.expose_provenance(), first_bytes, bytes };
        self.flights.lock().unwrap().insert(read.ticket, flight);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.queue.submit(read) }
    }

    fn complete(&mut self) -> io::Result<Completion> {
        let mut completion = self.queue.complete()?;
        self.faults.gate.iter().for_each(|gate| gate.pass());
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let flight = self.flights.lock().unwrap().remove(&completion.ticket).unwrap();
        if flight.cached_only && self.faults.nothing_cached {
            completion.result = Err(io::ErrorKind::WouldBlock.into());
        }
        match self.faults.reads.get(&flight.number).copied().or(self.faults.every_read) {
            Some(Fault::Short(most)) => completion.result = completion.result.map(|bytes| bytes.min(most)),
            Some(Fault::Stitched(at)) => {
                let end = completion.result.as_ref().map_or(0, |&bytes| bytes.min(flight.first_bytes));
                let start: *mut u8 = std::ptr::with_exposed_provenance_mut(flight.start);
                for place in at..end {
                    // SAFETY: the read has ended, and its submitter still lends the buffer, which is longer and the CPU's.
                    unsafe { start.add(place).write(start.add(place - at).read()) };
                }
            }
            Some(Fault::Long) => completion.result = Ok(flight.bytes + 1),
            Some(Fault::Errno(errno)) => completion.result = Err(io::Error::from_raw_os_error(errno)),
            None => {}
        }
        Ok(completion)
    }
}

impl Drop for FaultyQueue {
    fn drop(&mut self) {
        // What is in flight ends with the inner queue.
        let left = self.flights.lock().unwrap().len() as u64;
        self.in_flight.fetch_sub(left, Ordering::Relaxed);
    }
}
