//! Threads that place and free in one space at once, each by a trace of its own.

use std::collections::BTreeMap;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Instant;

use crate::contestants::Shared;
use crate::traces::{Operation, Trace};

pub(crate) const THREADS: u64 = 8;
pub(crate) const OPERATIONS: usize = 200_000;
pub(crate) const LIVE: usize = 100;

/// A space of so many times what all have live at most, if their peaks meet.
pub(crate) fn capacity(traces: &[Trace], times: u64) -> u64 {
    traces.iter().map(|trace| trace.of_peak(100 * times)).sum()
}

/// Runs the traces at once and checks each block against all live ones; that takes most of the time.
pub(crate) fn check<S: Shared>(traces: &[Trace], capacity: u64) -> Result<(), String> {
    let space = S::new(capacity)?;
    let ends: Mutex<BTreeMap<u64, u64>> = Mutex::default();
    let placed = |start: u64, size: u64| {
        let mut ends = ends.lock().map_err(|_| "another thread failed")?;
        let below = ends.range(..=start).next_back().is_some_and(|(_, &end)| end > start);
        let above = ends.range(start..).next().is_some_and(|(&next, _)| next < start + size);
        ends.insert(start, start + size);
        if below || above { Err(format!("the block of {size} at {start} overlaps another")) } else { Ok(()) }
    };
    let freed = |start: u64| {
        ends.lock().ok().and_then(|mut ends| ends.remove(&start));
    };
    let start = Barrier::new(traces.len());
    thread::scope(|scope| {
        let threads = traces.iter().map(|trace| scope.spawn(|| run(&space, trace, &start, placed, freed)));
        join(threads.collect())
    })?;
    settled(&space)
}

/// Runs the traces at once: operations in a second, over all threads. The time ends when all that was freed is free.
pub(crate) fn round<S: Shared>(traces: &[Trace], capacity: u64) -> Result<f64, String> {
    let space = S::new(capacity)?;
    let start = Barrier::new(traces.len() + 1);
    let (operations, started) = thread::scope(|scope| {
        let threads =
            traces.iter().map(|trace| scope.spawn(|| run(&space, trace, &start, |_, _| Ok(()), |_| ())));
        let threads = threads.collect();
        start.wait();
        let started = Instant::now();
        join(threads).map(|operations| (operations, started))
    })?;
    space.drain();
    let seconds = started.elapsed().as_secs_f64();
    settled(&space)?;
    Ok(operations as f64 / seconds)
}

/// One thread: how many blocks it has placed and freed.
fn run<S: Shared>(
    space: &S,
    trace: &Trace,
    start: &Barrier,
    placed: impl Fn(u64, u64) -> Result<(), String>,
    freed: impl Fn(u64),
) -> Result<u64, String> {
    let mut live: Vec<(u64, S::Live)> = Vec::with_capacity(2 * LIVE);
    let (mut operations, mut outcome) = (0, Ok(()));
    start.wait();
    for operation in &trace.operations {
        match *operation {
            Operation::Place(size) => {
                let Some((start, block)) = space.allocate(size) else {
                    outcome = Err(format!("no room for {size}"));
                    break;
                };
                live.push((start, block));
                outcome = placed(start, size);
                if outcome.is_err() {
                    break;
                }
            }
            Operation::Free(at) => {
                let (start, block) = live.swap_remove(at);
                freed(start);
                space.free(block);
            }
        }
        operations += 1;
    }
    for (start, block) in live {
        freed(start);
        space.free(block);
        operations += 1;
    }
    outcome.map(|()| operations)
}

fn join(threads: Vec<thread::ScopedJoinHandle<'_, Result<u64, String>>>) -> Result<u64, String> {
    threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?).sum()
}

fn settled<S: Shared>(space: &S) -> Result<(), String> {
    space.drain();
    if space.is_empty() { Ok(()) } else { Err("not empty at the end".into()) }
}
