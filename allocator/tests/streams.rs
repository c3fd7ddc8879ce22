//! Facts about ranges that are used on streams: when they are used again, and when they go back.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;

use proptest::prelude::*;
use support::{DeviceMemory, Handle, Stream};
use tensorhold_allocator::events::{self, Log};
use tensorhold_allocator::{
    Error, Fence, Fragment, HostMemory, Memory, MemoryError, OrderedStream, Pool, Request,
};

fn device() -> (Arc<DeviceMemory>, Pool) {
    let memory = Arc::new(DeviceMemory::default());
    let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).build().unwrap();
    (memory, pool)
}

fn streams<const N: usize>() -> [Handle; N] {
    std::array::from_fn(|_| Handle(Stream::new()))
}

fn place(pool: &Pool, bytes: u64) -> Fragment {
    pool.place("t", Request::new(bytes, 256)).unwrap()
}

/// Enqueues work that uses a fragment, and gives the fragment's address.
fn use_on(fragment: &Fragment, stream: &Handle) -> *const u8 {
    let use_ = fragment.use_on(stream).unwrap();
    stream.0.enqueue();
    let address = use_.as_ptr();
    use_.end().unwrap();
    address
}

/// Waits until what was dropped has been dealt with as far as it can be without waiting for a fence.
fn looked_at(pool: &Pool) {
    // A pass for someone who does not wait for fences.
    match pool.clone().try_close() {
        Err(open) => drop(open),
        Ok(_) => panic!("the caller holds a fragment"),
    }
}

fn assert_empty(pool: &Pool) {
    pool.trim();
    let stats = pool.stats();
    let all =
        (stats.reserved_bytes, stats.live_bytes, stats.pending_bytes, stats.fragments, stats.lost_bytes);
    assert_eq!(all, (0, 0, 0, 0, 0));
}

#[test]
fn a_range_is_not_free_before_its_recorded_uses_have_ended() {
    let (memory, pool) = device();
    let [one, two] = streams();
    let (keep, used) = (place(&pool, 256), place(&pool, 4096));
    use_on(&used, &one);
    use_on(&used, &two);
    drop(used);
    looked_at(&pool);
    assert_eq!((pool.stats().pending_bytes, pool.stats().live_bytes), (4096, 256));
    one.0.finish();
    looked_at(&pool);
    assert_eq!(pool.stats().pending_bytes, 4096);
    two.0.finish();
    looked_at(&pool);
    assert_eq!(pool.stats().pending_bytes, 0);
    // No address was given out: what else runs on the device does not matter.
    drop(keep);
    assert_empty(&pool);
    assert_eq!(memory.synchronized.load(Ordering::Relaxed), 0);
}

#[test]
fn a_later_use_on_a_stream_takes_the_place_of_an_earlier_one() {
    let (_memory, pool) = device();
    let [stream] = streams();
    let (_keep, used) = (place(&pool, 256), place(&pool, 4096));
    use_on(&used, &stream);
    stream.0.finish();
    use_on(&used, &stream);
    drop(used);
    looked_at(&pool);
    assert_eq!(pool.stats().pending_bytes, 4096);
    stream.0.finish();
    looked_at(&pool);
    assert_eq!(pool.stats().pending_bytes, 0);
}

#[test]
fn a_range_whose_address_was_given_out_waits_for_the_whole_memory() {
    let (memory, pool) = device();
    let [stream] = streams();
    let exposures: [fn(&Fragment); 2] = [
        |fragment| assert!(!fragment.as_ptr().is_null()),
        |fragment| assert_eq!(fragment.view().len(), 4096),
    ];
    for expose in exposures {
        let fragment = place(&pool, 4096);
        use_on(&fragment, &stream);
        expose(&fragment);
        let before = memory.synchronized.load(Ordering::Relaxed);
        drop(fragment);
        // The memory has ended with all of it, so the fence is not asked.
        assert_empty(&pool);
        assert_eq!(memory.synchronized.load(Ordering::Relaxed), before + 1);
    }
    let fragment = place(&pool, 4096);
    fragment.view();
    // SAFETY: nothing uses it.
    unsafe { fragment.assume_unused() };
    drop(fragment);
    assert_empty(&pool);
    assert_eq!(memory.synchronized.load(Ordering::Relaxed), 2);
}

#[test]
fn a_use_whose_guard_is_forgotten_waits_for_the_whole_memory() {
    let (memory, pool) = device();
    let [stream] = streams();
    let fragment = place(&pool, 4096);
    std::mem::forget(fragment.use_on(&stream).unwrap());
    stream.0.enqueue();
    drop(fragment);
    assert_empty(&pool);
    assert_eq!(memory.synchronized.load(Ordering::Relaxed), 1);
}

#[test]
fn a_batch_is_synchronized_unless_its_writer_says_that_it_has_ended() {
    let (memory, pool) = device();
    let mut before = 0;
    for settled in [false, true] {
        let layout = pool.lay_out([Request::new(4096, 256); 3]).unwrap();
        let placed = pool.place_planned(&layout, &["a".into(), "b".into(), "c".into()]).unwrap();
        if settled {
            // SAFETY: nothing uses them.
            placed.fragments.iter().for_each(|fragment| unsafe { fragment.assume_unused() });
        }
        drop(placed);
        assert_empty(&pool);
        // In one pass of the reaper, or in several.
        let synchronized = memory.synchronized.load(Ordering::Relaxed);
        assert_eq!(synchronized > before, !settled);
        before = synchronized;
    }
}

#[test]
fn the_same_stream_uses_a_range_again_at_once_and_another_comes_after_it() {
    let (memory, pool) = device();
    let [one, two] = streams();
    let _keep = place(&pool, 256);
    let fill = place(&pool, (64 << 20) - 256 - 4096);
    let used = pool.place_on(&one, "used", Request::new(4096, 256)).unwrap();
    let address = use_on(&used, &one);
    drop(used);
    let again = pool.place_on(&one, "again", Request::new(4096, 256)).unwrap();
    assert_eq!(use_on(&again, &one), address);
    let work = one.0.enqueue();
    use_on(&again, &one);
    drop(again);
    assert!(!two.0.comes_after(&one.0, work));
    let other = pool.place_on(&two, "other", Request::new(4000, 256)).unwrap();
    assert!(two.0.comes_after(&one.0, work), "the other stream was not made to wait");
    assert_eq!(memory.reserved.load(Ordering::Relaxed), 1);
    // Dropped without a use of its own, it is free no sooner than the range was.
    drop(other);
    two.0.finish();
    assert!(!one.0.is_done(work));
    one.0.finish();
    drop(fill);
    pool.trim();
    assert_eq!(pool.stats().pending_bytes, 0);
}

#[test]
fn what_is_not_needed_of_a_pending_range_stays_pending() {
    let (_memory, pool) = device();
    let [stream] = streams();
    let keep = place(&pool, 256);
    let fill = place(&pool, (64 << 20) - 256 - 8192);
    let used = place(&pool, 8192);
    let address = use_on(&used, &stream);
    drop(used);
    let part = pool.place_on(&stream, "part", Request::new(1000, 256)).unwrap();
    assert_eq!((part.use_on(&stream).unwrap().as_ptr(), part.len()), (address, 1000));
    looked_at(&pool);
    assert_eq!(pool.stats().pending_bytes, 8192 - 1024);
    let rest = pool.place_on(&stream, "rest", Request::new(8192 - 1024, 256)).unwrap();
    assert_eq!(rest.use_on(&stream).unwrap().as_ptr() as usize, address as usize + 1024);
    stream.0.finish();
    drop((keep, fill, part, rest));
    assert_empty(&pool);
}

#[test]
fn a_placement_that_would_fail_waits_for_fences() {
    let memory = Arc::new(DeviceMemory::default());
    let pool = Pool::builder(memory as Arc<dyn Memory>).limit_bytes(8192).build().unwrap();
    let [stream] = streams();
    let used = place(&pool, 8192);
    use_on(&used, &stream);
    drop(used);
    let (told, waits) = mpsc::channel();
    *stream.0.waited_for.lock().unwrap() = Some(told);
    thread::scope(|scope| {
        let placed = scope.spawn(|| pool.place("again", Request::new(8192, 256)));
        waits.recv().unwrap();
        assert!(!placed.is_finished());
        stream.0.finish();
        placed.join().unwrap().unwrap();
    });
    assert_empty(&pool);
}

#[test]
fn closing_does_not_wait_for_fences_and_says_what_is_pending() {
    let (memory, pool) = device();
    let [stream] = streams();
    let used = place(&pool, 4096);
    use_on(&used, &stream);
    drop(used);
    let other = pool.clone();
    let closed = pool.try_close().unwrap();
    assert_eq!((closed.held.len(), closed.pending_bytes, closed.pinned_bytes), (0, 4096, 64 << 20));
    assert!(matches!(other.place("late", Request::new(1, 1)), Err(Error::Closed { .. })));
    stream.0.finish();
    assert_empty(&other);
    assert_eq!(memory.reserved.load(Ordering::Relaxed), 0);
}

#[test]
fn a_stream_that_is_captured_cannot_be_used_and_what_was_used_there_stays() {
    let (_memory, pool) = device();
    let [stream] = streams();
    let fragment = place(&pool, 4096);
    stream.0.captured.store(true, Ordering::Relaxed);
    assert!(matches!(fragment.use_on(&stream), Err(Error::Stream { bytes: 4096, .. })));
    assert!(matches!(pool.place_on(&stream, "t", Request::new(1, 1)), Err(Error::Stream { .. })));
    stream.0.captured.store(false, Ordering::Relaxed);
    // Captured while it is used: replays of the graph cannot be known.
    let use_ = fragment.use_on(&stream).unwrap();
    stream.0.captured.store(true, Ordering::Relaxed);
    assert!(use_.end().is_err());
    drop(fragment);
    pool.trim();
    assert_eq!((pool.stats().fragments, pool.stats().live_bytes), (1, 4096));
}

#[test]
fn after_a_failure_on_a_stream_the_memory_is_synchronized_or_the_range_is_lost() {
    let (memory, pool) = device();
    let [stream] = streams();
    let (used, lost) = (place(&pool, 4096), place(&pool, 256));
    use_on(&used, &stream);
    use_on(&lost, &stream);
    stream.0.fail();
    drop(used);
    pool.trim();
    assert_eq!((pool.stats().pending_bytes, memory.synchronized.load(Ordering::Relaxed)), (0, 1));
    memory.fail_synchronize.store(true, Ordering::Relaxed);
    drop(lost);
    pool.trim();
    assert_eq!((pool.stats().pending_bytes, pool.stats().lost_bytes), (0, 256));
}

#[test]
fn the_cpu_writes_only_when_recorded_uses_have_ended() {
    let pool = Pool::new(HostMemory::new()).unwrap();
    let [stream] = streams();
    let mut fragment = place(&pool, 256);
    use_on(&fragment, &stream);
    assert!(fragment.as_bytes_mut().is_none());
    let clone = fragment.clone();
    assert!(fragment.use_mut_on(&stream).unwrap().is_none());
    drop(clone);
    fragment.use_mut_on(&stream).unwrap().unwrap().end().unwrap();
    stream.0.finish();
    assert!(fragment.as_bytes_mut().is_some());
    // Where the CPU can touch the memory, a range is placed when all has ended with it.
    let used = place(&pool, 256);
    let address = use_on(&used, &stream);
    drop(used);
    let other = pool.place_on(&stream, "other", Request::new(256, 256)).unwrap();
    assert_ne!(other.as_ptr(), address);
    stream.0.finish();
}

#[test]
fn the_cpu_reads_only_when_recorded_writes_have_ended() {
    let pool = Pool::new(HostMemory::new()).unwrap();
    let [one, two] = streams();
    let mut fragment = place(&pool, 256);
    // Reading at the same time does no harm.
    use_on(&fragment, &one);
    assert!(fragment.as_bytes().is_some() && !fragment.has_pending_writes());
    let write = fragment.use_mut_on(&one).unwrap().unwrap();
    one.0.enqueue();
    write.end().unwrap();
    let other = fragment.clone();
    use_on(&other, &two);
    for owner in [&fragment, &other, &fragment.slice(0, 1).unwrap()] {
        assert!(owner.as_bytes().is_none() && owner.has_pending_writes());
    }
    one.0.finish();
    assert!(fragment.as_bytes().is_some() && other.as_bytes().is_some());
    drop(other);
    // A guard that is forgotten writes for ever.
    std::mem::forget(fragment.use_mut_on(&two).unwrap().unwrap());
    two.0.finish();
    fragment.use_mut_on(&two).unwrap().unwrap().end().unwrap();
    two.0.finish();
    assert!(fragment.as_bytes().is_none() && fragment.as_bytes_mut().is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Place(u64),
    PlaceOn(usize, u64),
    Use(usize, usize),
    Expose(usize),
    Drop(usize),
    Finish(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![1..600_u64, 600..9000_u64];
    prop_oneof![
        2 => size().prop_map(Step::Place),
        3 => (0..3_usize, size()).prop_map(|(stream, size)| Step::PlaceOn(stream, size)),
        4 => (any::<usize>(), 0..3_usize).prop_map(|(fragment, stream)| Step::Use(fragment, stream)),
        1 => any::<usize>().prop_map(Step::Expose),
        4 => any::<usize>().prop_map(Step::Drop),
        1 => (0..3_usize).prop_map(Step::Finish),
    ]
}

/// All work of a stream ends, and that of the streams that it waits for.
fn finish(streams: &[Handle], which: usize) {
    let mut ends = vec![streams[which].0.id()];
    let mut next = 0;
    while let Some(id) = ends.get(next) {
        let stream = streams.iter().find(|stream| stream.0.id() == *id);
        let first = stream.map(|stream| stream.0.waits_for()).unwrap_or_default();
        ends.extend(first.into_iter().filter(|id| !ends.contains(id)).collect::<Vec<_>>());
        next += 1;
    }
    streams.iter().filter(|stream| ends.contains(&stream.0.id())).for_each(|stream| stream.0.finish());
}

/// A use of addresses that may not have ended: on which stream, and which work of it.
type Busy = (std::ops::Range<usize>, usize, u64);

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The oracle knows every use of every address: a range is placed for all only when they have ended, and for a stream
    /// only when it comes after them.
    #[test]
    fn no_range_is_used_again_before_its_uses(steps in prop::collection::vec(step(), 1..120)) {
        let memory = Arc::new(DeviceMemory::default());
        let (recorder, log) = events::recorder(100_000);
        let pool = Pool::builder(memory as Arc<dyn Memory>).region_bytes(16 << 10).events(recorder);
        let pool = pool.build().unwrap();
        let streams: [Handle; 3] = streams();
        let mut live: Vec<(Fragment, std::ops::Range<usize>)> = Vec::new();
        let mut busy: Vec<Busy> = Vec::new();
        for step in steps {
            match step {
                Step::Place(bytes) | Step::PlaceOn(_, bytes) => {
                    let request = Request::new(bytes, 256);
                    let on = match step { Step::PlaceOn(stream, _) => Some(&streams[stream]), _ => None };
                    let fragment = match on {
                        Some(stream) => pool.place_on(stream, "t", request).unwrap(),
                        None => pool.place("t", request).unwrap(),
                    };
                    // Any stream tells the address, and is not used.
                    let [teller] = self::streams();
                    let start = fragment.use_on(&teller).unwrap().as_ptr() as usize;
                    let range = start..start + bytes as usize;
                    let overlaps = |other: &std::ops::Range<usize>| other.start < range.end && range.start < other.end;
                    prop_assert!(!live.iter().any(|(_, other)| overlaps(other)), "two live fragments overlap");
                    for (_, stream, work) in busy.iter().filter(|(other, ..)| overlaps(other)) {
                        let user = &streams[*stream].0;
                        let ordered = on.map_or(user.is_done(*work), |on| on.0.comes_after(user, *work));
                        prop_assert!(ordered, "work {work} of stream {stream} has not ended with {range:?}");
                    }
                    live.push((fragment, range));
                }
                Step::Use(n, stream) if !live.is_empty() => {
                    let (fragment, range) = &live[n % live.len()];
                    // An engine uses a range in the order of its work: here too, streams come after each other.
                    for (_, other, work) in busy.iter().filter(|(other, ..)| *other == *range) {
                        let user = &streams[*other].0;
                        if !streams[stream].0.comes_after(user, *work) { finish(&streams, *other); }
                    }
                    let use_ = fragment.use_on(&streams[stream]).unwrap();
                    busy.push((range.clone(), stream, streams[stream].0.enqueue()));
                    use_.end().unwrap();
                }
                Step::Expose(n) if !live.is_empty() => {
                    let index = n % live.len();
                    // The memory does not wait for streams here, so exposed ranges are those that they have ended with.
                    streams.iter().for_each(|stream| stream.0.finish());
                    live[index].0.view();
                    drop(live.swap_remove(index));
                }
                Step::Drop(n) if !live.is_empty() => drop(live.swap_remove(n % live.len())),
                Step::Finish(stream) => finish(&streams, stream),
                Step::Use(..) | Step::Expose(_) | Step::Drop(_) => {}
            }
        }
        streams.iter().for_each(|stream| stream.0.finish());
        drop(live);
        assert_empty(&pool);
        // Reading the log checks that no two of its fragments overlap.
        prop_assert!(Log::read(&log.write_to(Vec::new()).unwrap()[..]).is_ok());
    }
}

#[test]
fn what_a_stream_that_failed_was_to_write_is_not_read_by_the_cpu() {
    let pool = Pool::new(HostMemory::new()).unwrap();
    let [stream, other] = streams();
    let mut fragment = place(&pool, 256);
    drop(fragment.use_mut_on(&stream).unwrap());
    stream.0.fail();
    assert!(fragment.as_bytes().is_none());
    // A use that could not be recorded is not known to end.
    let mut unrecorded = place(&pool, 256);
    let guard = unrecorded.use_mut_on(&other).unwrap().expect("it is the only owner");
    other.0.captured.store(true, Ordering::Relaxed);
    guard.end().unwrap_err();
    assert!(unrecorded.as_bytes().is_none() && unrecorded.clone().as_bytes().is_none());
}

/// A stream that panics when it is to wait for a fence, or to record one.
struct Panicking {
    stream: Handle,
    waits: bool,
}

// SAFETY: O2, O3 as the stream's; what has not returned promises nothing.
unsafe impl OrderedStream for Panicking {
    fn id(&self) -> u64 {
        self.stream.id()
    }

    fn check(&self) -> Result<(), MemoryError> {
        self.stream.check()
    }

    fn record(&self) -> Result<Arc<dyn Fence>, MemoryError> {
        panic!("the test's stream panics");
    }

    fn wait_for(&self, fence: &Arc<dyn Fence>) -> Result<(), MemoryError> {
        assert!(self.waits, "the test's stream panics");
        self.stream.wait_for(fence)
    }
}

#[test]
fn a_range_that_a_stream_panicked_for_waits_again_and_goes_back() {
    for waits in [false, true] {
        let memory = Arc::new(DeviceMemory::default());
        let pool = Pool::builder(memory).region_bytes(4096).build().unwrap();
        let [one, two] = streams();
        let used = place(&pool, 4096);
        use_on(&used, &one);
        drop(used);
        let panicking = Panicking { stream: two, waits };
        let placed = catch_unwind(AssertUnwindSafe(|| {
            pool.place_on(&panicking, "t", Request::new(4096, 256)).map(drop)
        }));
        assert!(placed.is_err(), "it panics");
        assert_eq!(pool.stats().pending_bytes, 4096);
        one.0.finish();
        assert_empty(&pool);
    }
}
