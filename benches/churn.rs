//! Blocks that come and go: a million operations on a space, with about a thousand blocks live and sizes log-uniform
//! from 256 B to 64 MiB.
//!
//! For each policy and seed: nanoseconds of an operation (the clock's own time taken off), and the smallest space in which no request
//! fails, as a multiple of the most bytes that were live; then the range of each over the seeds. Every trace is checked:
//! what is live never overlaps, and the space is empty at the end.
//!
//! `cargo bench --bench churn -- record FILE` records a pool instead that is treated so, for `benches/traces`.

use std::env;
use std::fs::File;
use std::hint::black_box;
use std::io::BufWriter;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use tensorhold_allocator::offsets::{Key, Policy, Space};
use tensorhold_allocator::{HostMemory, Pool, Request, events};

const OPERATIONS: usize = 1_000_000;
const LIVE: usize = 1000;
const GRANULE: u64 = 256;
const SEEDS: RangeInclusive<u64> = 1..=5;

/// What is done next: place so many bytes, or free the block at this place of the list of live ones.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Place(u64),
    Free(usize),
}

/// A trace of so many operations on about so many blocks, and the most bytes that are live in it, rounded to the granule.
fn trace(seed: u64, operations: usize, aim: usize) -> (Vec<Operation>, u64) {
    let mut state = seed;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let (mut live, mut bytes, mut peak) = (Vec::new(), 0, 0);
    let operations = (0..operations).map(|_| {
        // As many come as go, around the number that is aimed at.
        if live.is_empty() || random() < 0.5 + (aim as f64 - live.len() as f64) / aim as f64 {
            let size = (256.0 * (random() * 18.0).exp2()) as u64;
            live.push(size);
            bytes += size.next_multiple_of(GRANULE);
            peak = peak.max(bytes);
            Operation::Place(size)
        } else {
            let at = ((random() * live.len() as f64) as usize).min(live.len() - 1);
            bytes -= live.swap_remove(at).next_multiple_of(GRANULE);
            Operation::Free(at)
        }
    });
    (operations.collect(), peak)
}

/// Runs a trace in a space of that size. `false` when a request fails.
fn fits(policy: Policy, trace: &[Operation], capacity: u64) -> bool {
    let mut space = Space::with_policy(policy, capacity, GRANULE);
    let mut live: Vec<Key> = Vec::new();
    for operation in trace {
        match *operation {
            Operation::Place(size) => match space.allocate(Request::new(size, GRANULE)) {
                Some(placed) => live.push(placed.key),
                None => return false,
            },
            Operation::Free(at) => assert!(space.free(live.swap_remove(at)).is_ok()),
        }
    }
    live.into_iter().for_each(|key| assert!(space.free(key).is_ok()));
    assert!(space.is_empty() && space.largest_free() == capacity);
    true
}

/// The time of each operation in nanoseconds, in ascending order.
fn times(policy: Policy, trace: &[Operation], capacity: u64) -> Vec<u64> {
    let clock = (0..10_000).map(|_| black_box(Instant::now()).elapsed().as_nanos() as u64);
    let mut clock: Vec<u64> = clock.collect();
    clock.sort_unstable();
    let overhead = clock[clock.len() / 2];
    let mut space = Space::with_policy(policy, capacity, GRANULE);
    let mut live: Vec<(u64, u64, Key)> = Vec::new();
    let mut times = Vec::with_capacity(trace.len());
    for (number, operation) in trace.iter().enumerate() {
        let started = Instant::now();
        match *operation {
            Operation::Place(size) => {
                let placed = black_box(space.allocate(Request::new(size, GRANULE)));
                times.push(started.elapsed().as_nanos() as u64);
                let Some(placed) = placed else { panic!("no room for {size}") };
                live.push((placed.offset, size, placed.key));
            }
            Operation::Free(at) => {
                let key = live.swap_remove(at).2;
                let started = Instant::now();
                let freed = black_box(space.free(key));
                times.push(started.elapsed().as_nanos() as u64);
                assert!(freed.is_ok());
            }
        }
        if number % 100_000 == 0 {
            let mut sorted = live.clone();
            sorted.sort_unstable_by_key(|&(offset, ..)| offset);
            assert!(sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "blocks overlap");
        }
    }
    times.iter_mut().for_each(|time| *time = time.saturating_sub(overhead));
    times.sort_unstable();
    times
}

/// Records a pool in regions of 256 MiB that is treated so, for `benches/traces`. No byte of it is touched.
fn record(file: &str) {
    let (recorder, log) = events::recorder(events::DEFAULT_CAPACITY);
    let builder = Pool::builder(Arc::new(HostMemory::new())).name("churn").region_bytes(256 << 20);
    let Ok(pool) = builder.events(recorder).build() else { panic!("the pool does not start") };
    let mut live = Vec::new();
    for operation in trace(1, 6000, 200).0 {
        match operation {
            Operation::Place(size) => match pool.place("block", Request::new(size, GRANULE)) {
                Ok(fragment) => live.push(fragment),
                Err(error) => panic!("{error}"),
            },
            Operation::Free(at) => {
                drop(live.swap_remove(at));
                // The reaper keeps up, as it would if something was done with the memory.
                pool.trim();
            }
        }
    }
    drop(live);
    pool.close();
    let written = File::create(file).and_then(|file| log.write_to(BufWriter::new(file)));
    assert!(written.is_ok() && !log.is_full(), "{written:?}");
}

/// What is reported of a trace: the smallest space, in hundredths of the peak, and times in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Row {
    smallest: u64,
    mean: f64,
    /// p50, p99, p99.9 and the largest.
    times: [u64; 4],
}

fn measure(policy: Policy, trace: &[Operation], peak: u64) -> Row {
    let of_peak = |hundredths: u64| peak / 100 * hundredths;
    // Room for more is not room for less in every case, but it is close.
    let smallest = (100..200).find(|&hundredths| fits(policy, trace, of_peak(hundredths))).unwrap_or(200);
    let times = times(policy, trace, of_peak(smallest + 5));
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    let mean = times.iter().sum::<u64>() as f64 / times.len() as f64;
    Row { smallest, mean, times: [0.5, 0.99, 0.999, 1.0].map(at) }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [command, file] = &arguments[..]
        && command == "record"
    {
        return record(file);
    }
    println!("| policy | seed | peak live | smallest space | mean ns | p50 | p99 | p99.9 | max |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let traces: Vec<_> = SEEDS.map(|seed| (seed, trace(seed, OPERATIONS, LIVE))).collect();
    for policy in [Policy::BestFit, Policy::Segregated] {
        let row = |(seed, (trace, peak)): &(u64, (Vec<Operation>, u64))| {
            let row = measure(policy, trace, *peak);
            let [p50, p99, p999, max] = row.times;
            println!(
                "| {policy:?} | {seed} | {:.1} GiB | {:.2} | {:.1} | {p50} | {p99} | {p999} | {max} |",
                *peak as f64 / f64::from(1 << 30),
                row.smallest as f64 / 100.0,
                row.mean,
            );
            row
        };
        let rows: Vec<Row> = traces.iter().map(row).collect();
        let range = |value: &dyn Fn(&Row) -> f64, digits: usize| {
            let values = || rows.iter().map(value);
            let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
            format!("{low:.digits$} to {high:.digits$}")
        };
        println!(
            "| {policy:?} | {} to {} | | {} | {} | {} | {} | {} | {} |",
            SEEDS.start(),
            SEEDS.end(),
            range(&|row| row.smallest as f64 / 100.0, 2),
            range(&|row| row.mean, 1),
            range(&|row| row.times[0] as f64, 0),
            range(&|row| row.times[1] as f64, 0),
            range(&|row| row.times[2] as f64, 0),
            range(&|row| row.times[3] as f64, 0),
        );
    }
}
