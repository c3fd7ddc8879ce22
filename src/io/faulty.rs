//! An engine with faults, for tests: it reads as another does, and then tells of some reads what they did not do.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::{Access, Completion, Engine, FileSource, Queue, Read};

/// What is wrong with a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It returns at most so many bytes.
    Short(usize),
    /// It fails with this error of the system.
    Errno(i32),
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
    fn open(&self, file: &FileSource) -> io::Result<Access> {
        fails(self.faults.open)?;
        self.engine.open(file)
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn Queue>> {
        fails(self.faults.queue)?;
        let queue = self.engine.queue(depth)?;
        Ok(Box::new(FaultyQueue {
            queue,
            faults: Arc::clone(&self.faults),
            reads: Arc::clone(&self.reads),
            in_flight: Arc::clone(&self.in_flight),
            numbers: Mutex::default(),
        }))
    }
}

struct FaultyQueue {
    queue: Box<dyn Queue>,
    faults: Arc<Faults>,
    reads: Arc<AtomicU64>,
    in_flight: Arc<AtomicU64>,
    /// By ticket: the number of the read, and whether it must not wait.
    numbers: Mutex<BTreeMap<usize, (u64, bool)>>,
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
        self.numbers.lock().unwrap().insert(read.ticket, (number, read.cached_only));
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.queue.submit(read) }
    }

    fn complete(&mut self) -> io::Result<Completion> {
        let mut completion = self.queue.complete()?;
        self.faults.gate.iter().for_each(|gate| gate.pass());
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let (number, cached_only) = self.numbers.lock().unwrap().remove(&completion.ticket).unwrap();
        if cached_only && self.faults.nothing_cached {
            completion.result = Err(io::ErrorKind::WouldBlock.into());
        }
        match self.faults.reads.get(&number).copied().or(self.faults.every_read) {
            Some(Fault::Short(most)) => completion.result = completion.result.map(|bytes| bytes.min(most)),
            Some(Fault::Errno(errno)) => completion.result = Err(io::Error::from_raw_os_error(errno)),
            None => {}
        }
        Ok(completion)
    }
}

impl Drop for FaultyQueue {
    fn drop(&mut self) {
        // What is in flight ends with the inner queue.
        let left = self.numbers.lock().unwrap().len() as u64;
        self.in_flight.fetch_sub(left, Ordering::Relaxed);
    }
}
