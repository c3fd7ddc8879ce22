use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use proptest::prelude::*;

use super::{Event, EventLog, Log, recorder};
use crate::replay::{self, Policy, Room};
use crate::{
    Fragment, HostMemory, Memory, MemoryError, MemoryId, Pool, PoolBuilder, RawRegion, Request, offsets,
};

fn builder() -> (PoolBuilder, EventLog) {
    let (recorder, log) = recorder(10_000);
    (Pool::builder(Arc::new(HostMemory::new())).region_bytes(1 << 20).events(recorder), log)
}

/// The log as it is after a way through a file, which checks it.
fn read(log: &EventLog) -> Log {
    Log::read(&log.write_to(Vec::new()).unwrap()[..]).unwrap()
}

fn batch(pool: &Pool, sizes: &[u64]) -> crate::Placed {
    let layout = pool.lay_out(sizes.iter().map(|&size| Request::new(size, 256))).unwrap();
    let labels: Vec<Arc<str>> = (0..sizes.len()).map(|index| format!("part {index}").into()).collect();
    pool.place_planned(&layout, &labels).unwrap()
}

#[test]
fn the_log_tells_the_life_of_fragments_and_regions_in_order() {
    let (builder, log) = builder();
    let pool = builder.name("p").limit_bytes(1 << 30).retain_bytes(7).build().unwrap();
    let scales = pool.place("scales", Request::new(1000, 512)).unwrap();
    let empty = pool.place("empty", Request::new(0, 16)).unwrap();
    drop(scales.clone());
    drop(scales);
    pool.trim();
    drop(empty);
    pool.trim();
    pool.close();

    let log = read(&log);
    let header = &log.header;
    assert_eq!((&*header.pool, &*header.memory, header.granule), ("p", "host", 256));
    assert_eq!((header.region_bytes, header.limit_bytes, header.retain_bytes), (1 << 20, Some(1 << 30), 7));
    // When the reaper looks for empty regions is its own affair.
    let told = log.events.iter().map(|(_, event)| event).filter(|event| !matches!(event, Event::Trim { .. }));
    let told: Vec<String> = told.map(|event| serde_json::to_string(event).unwrap()).collect();
    let expected = [
        r#"{"grow":{"r":0,"b":1048576}}"#,
        r#"{"alloc":{"n":0,"l":"scales","b":1000,"a":512,"r":0,"o":0}}"#,
        r#"{"alloc":{"n":1,"l":"empty","b":0,"a":16,"r":0,"o":0}}"#,
        r#"{"retire":[0]}"#,
        r#"{"reap":[0]}"#,
        r#"{"release":{"r":0,"b":1048576}}"#,
        r#"{"retire":[1]}"#,
        r#"{"reap":[1]}"#,
        r#""close""#,
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_batch_is_blocks_that_are_cut() {
    let (builder, log) = builder();
    let pool = builder.max_region_bytes(std::num::NonZeroU64::new(4096).unwrap()).build().unwrap();
    let placed = batch(&pool, &[1000, 0, 3000, 2000]);
    let log = read(&log);
    let cut = log.events.iter().find_map(|(_, event)| match event {
        Event::Cut { blocks, first, parts } => Some((blocks, first, parts)),
        _ => None,
    });
    let (blocks, first, parts) = cut.unwrap();
    assert_eq!((&blocks[..], *first), (&[0, 1][..], 2));
    let places: Vec<_> = parts.iter().map(|part| (part.block, part.offset, part.bytes)).collect();
    assert_eq!(places[0], (0, 0, 1000));
    assert_eq!(places[1].2, 0);
    assert_eq!(places[2..], [(0, 1024, 3000), (1, 0, 2000)]);
    assert_eq!(&*parts[3].label, "part 3");
    drop(placed);
}

#[test]
fn a_block_that_is_never_cut_goes_under_its_own_number() {
    let (builder, log) = builder();
    let pool = builder.build().unwrap();
    let layout = pool.lay_out([Request::new(5000, 256)]).unwrap();
    drop(pool.reserve_planned(&layout, "batch").unwrap());
    pool.close();
    let log = read(&log);
    assert!(log.events.iter().any(|(_, event)| matches!(event, Event::Take { block: 0, bytes: 5000, .. })));
    assert!(log.events.iter().any(|(_, event)| *event == Event::Reap(vec![0])));
}

#[test]
fn a_full_buffer_ends_the_recording_and_leaves_a_whole_log() {
    let (recorder, log) = recorder(3);
    let pool = Pool::builder(Arc::new(HostMemory::new())).events(recorder).build().unwrap();
    let place = |label: &str| pool.place(label, Request::new(100, 1)).unwrap();
    let held = ["a", "b", "c", "d"].map(place);
    assert!(log.is_full());
    assert_eq!(read(&log).events.len(), 3);
    drop((held, place("e")));
    pool.close();
    assert!(log.take().is_empty());
}

#[test]
fn a_log_that_is_taken_in_time_does_not_fill_up() {
    let (recorder, log) = recorder(8);
    let pool = Pool::builder(Arc::new(HostMemory::new())).events(recorder).build().unwrap();
    let mut events = Vec::new();
    for _ in 0..100 {
        drop(pool.place("t", Request::new(100, 1)).unwrap());
        pool.trim();
        events.extend(log.take());
    }
    assert!(!log.is_full());
    assert_eq!(events.iter().filter(|(_, event)| matches!(event, Event::Alloc { .. })).count(), 100);
}

#[test]
fn a_log_without_a_pool_cannot_be_written() {
    let (_recorder, log) = recorder(8);
    assert!(log.write_to(Vec::new()).unwrap_err().to_string().contains("PoolBuilder::events"));
}

#[test]
fn threads_that_race_leave_a_log_that_can_have_happened() {
    let (builder, log) = builder();
    let pool = builder.build().unwrap();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (pool, start) = (&pool, &start);
            scope.spawn(move || {
                start.wait();
                let mut held = Vec::new();
                for step in 0..200 {
                    held.push(
                        pool.place("t", Request::new(100 + 977 * (step * 7 + thread) % 60_000, 256)).unwrap(),
                    );
                    if step % 3 == 0 {
                        held.swap_remove((step as usize * 13) % held.len());
                    }
                    if step % 40 == thread * 10 {
                        drop(batch(pool, &[1000 * (step + 1), 300]));
                        pool.trim();
                    }
                }
            });
        }
    });
    pool.close();
    assert!(!log.is_full());
    let log = read(&log);
    let count = |of: fn(&Event) -> usize| log.events.iter().map(|(_, event)| of(event)).sum::<usize>();
    let placed = count(|event| match event {
        Event::Alloc { .. } => 1,
        Event::Cut { parts, .. } => parts.len(),
        _ => 0,
    });
    let reaped = count(|event| if let Event::Reap(numbers) = event { numbers.len() } else { 0 });
    assert_eq!(placed, reaped);
    assert_eq!(count(|event| usize::from(*event == Event::Close)), 1);
}

/// Host memory that cannot be synchronized while told so.
struct Unsure(HostMemory, AtomicBool);

// SAFETY: as HostMemory, which does the work.
unsafe impl Memory for Unsure {
    fn name(&self) -> &str {
        "unsure"
    }

    fn id(&self) -> MemoryId {
        self.0.id()
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        self.0.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.0.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        if self.1.load(Ordering::Relaxed) { Err("told so".into()) } else { Ok(()) }
    }
}

#[test]
fn what_is_lost_is_not_reaped() {
    let (recorder, log) = recorder(100);
    let memory = Arc::new(Unsure(HostMemory::new(), AtomicBool::new(true)));
    let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).events(recorder).build().unwrap();
    let lost = pool.place("lost", Request::new(1000, 1)).unwrap();
    // Its address is given out, so the memory is synchronized for it.
    lost.view();
    drop(lost);
    pool.trim();
    memory.1.store(false, Ordering::Relaxed);
    drop(pool.place("found", Request::new(2000, 1)).unwrap());
    pool.trim();
    let log = read(&log);
    assert!(log.events.iter().any(|(_, event)| *event == Event::Lose(vec![0])));
    assert!(log.events.iter().any(|(_, event)| *event == Event::Reap(vec![1])));
    let replayed = replay::replay(&log, Policy::BestFit, Room::Growing);
    assert_eq!((replayed.digest, replayed.peak_live_bytes), (replay::recorded(&log).digest, 2000));
}

#[test]
fn refusals_leave_no_trace_and_room_that_is_made_does() {
    let (builder, log) = builder();
    let held = Arc::new(std::sync::Mutex::new(Vec::<Fragment>::new()));
    let give = Arc::clone(&held);
    let pool = builder.limit_bytes(1 << 20).on_pressure(move |_, asked| {
        give.lock().unwrap().clear();
        if asked == 1 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let pool = pool.build().unwrap();
    held.lock().unwrap().push(pool.place("first", Request::new(900 << 10, 1)).unwrap());
    assert!(pool.place("too large", Request::new(2 << 20, 1)).is_err());
    held.lock().unwrap().push(pool.place("second", Request::new(1 << 20, 1)).unwrap());
    let log = read(&log);
    let replayed = replay::replay(&log, Policy::BestFit, Room::Growing);
    assert_eq!((replayed.failures, replayed.digest), (0, replay::recorded(&log).digest));
}

#[derive(Debug, Clone)]
enum Step {
    Place(u64, u32),
    Batch(Vec<u64>),
    Drop(usize),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![1 => Just(0), 6 => 1..60_000_u64, 2 => 60_000..1_500_000_u64];
    prop_oneof![
        5 => (size, 0..12_u32).prop_map(|(size, shift)| Step::Place(size, shift)),
        1 => prop::collection::vec(0..200_000_u64, 1..6).prop_map(Step::Batch),
        4 => (0..64_usize).prop_map(Step::Drop),
        1 => Just(Step::Trim),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_replay_with_the_pools_own_policy_repeats_it(
        steps in prop::collection::vec(step(), 1..80),
        retain in prop_oneof![Just(0), Just(1 << 20), Just(5 << 20)],
        limit in prop_oneof![Just(None), Just(Some(6_u64 << 20))],
        piece in prop_oneof![Just(None), Just(std::num::NonZeroU64::new(300_000))],
        segregated in any::<bool>(),
    ) {
        let (placed_by, policy) = match segregated {
            true => (offsets::Policy::Segregated, Policy::Segregated),
            false => (offsets::Policy::BestFit, Policy::BestFit),
        };
        let (mut builder, log) = builder();
        builder = builder.retain_bytes(retain).policy(placed_by);
        if let Some(limit) = limit {
            builder = builder.limit_bytes(limit);
        }
        if let Some(piece) = piece {
            builder = builder.max_region_bytes(piece);
        }
        let pool = builder.build().unwrap();
        let mut held: Vec<Fragment> = Vec::new();
        for step in steps {
            match step {
                Step::Place(size, shift) => held.extend(pool.place("t", Request::new(size, 1 << shift))),
                Step::Batch(sizes) => {
                    let layout = pool.lay_out(sizes.iter().map(|&size| Request::new(size, 256))).unwrap();
                    let labels = vec![Arc::from("b"); sizes.len()];
                    held.extend(pool.place_planned(&layout, &labels).into_iter().flat_map(|placed| placed.fragments));
                }
                Step::Drop(at) if !held.is_empty() => {
                    drop(held.swap_remove(at % held.len()));
                    // Not while the next placement has given up the lock to grow: the replay knows of no threads.
                    match retain > 0 && limit.is_none() {
                        true => while pool.stats().fragments > held.len() || pool.stats().pending_bytes > 0 {
                            thread::yield_now();
                        },
                        false => pool.trim(),
                    }
                }
                Step::Drop(_) => {}
                Step::Trim => pool.trim(),
            }
        }
        drop(held);
        let high_water = pool.stats().high_water_bytes;
        pool.close();
        let log = read(&log);
        prop_assert_eq!(log.header.policy, placed_by);
        let replayed = replay::replay(&log, policy, Room::Growing);
        let recorded = replay::recorded(&log);
        prop_assert_eq!(replayed.digest, recorded.digest);
        prop_assert_eq!((replayed.regions, replayed.peak_reserved_bytes), (recorded.regions, recorded.peak_reserved_bytes));
        prop_assert_eq!(replayed.failures, 0);
        // Blocks count with their padding until they are cut, which the books do not.
        prop_assert!(replayed.peak_live_bytes >= high_water);
    }
}
