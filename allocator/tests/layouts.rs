//! Facts about layouts that a pool did not make itself: with gaps, in any order of regions, and untrue ones. Over memory that
//! checks what is done with it.

#[path = "support/parted.rs"]
mod memory;

use std::sync::{Arc, mpsc};
use std::thread;

use memory::{Parted, UNIT};
use proptest::prelude::*;
use tensorhold_allocator::events::{self, Log};
use tensorhold_allocator::offsets::{Layout, Placement, RegionShape};
use tensorhold_allocator::{Bases, Error, HostMemory, Memory, Pool, RegionParts, Request};

fn parted() -> (Arc<Parted>, Pool) {
    let memory = Arc::new(Parted::default());
    let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).region_parts(RegionParts::Require);
    (memory, pool.build().unwrap())
}

fn shape(size: u64, align: u64) -> RegionShape {
    RegionShape { size, align }
}

fn placement(region: u32, offset: u64, bytes: u64) -> Placement {
    Placement { region, offset, bytes }
}

fn layout(regions: &[RegionShape], placements: &[Placement]) -> Layout {
    Layout { regions: regions.iter().copied().collect(), placements: placements.to_vec() }
}

fn labels(layout: &Layout) -> Vec<Arc<str>> {
    (0..layout.placements.len()).map(|n| format!("t{n}").into()).collect()
}

fn assert_nothing_is_left(memory: &Parted, pool: &Pool) {
    pool.trim();
    let stats = pool.stats();
    assert_eq!(memory.violations(), [""; 0]);
    assert_eq!((memory.committed_bytes(), memory.ranges()), (0, 0));
    assert_eq!((stats.reserved_bytes, stats.live_bytes, stats.regions, stats.lost_bytes), (0, 0, 0, 0));
}

#[test]
fn units_that_no_fragment_touches_are_never_committed() {
    let (memory, pool) = parted();
    let align = 1 << 24;
    // Between the two, 254 units, and behind the second, 100.
    let gaps =
        layout(&[shape(align + 101 * UNIT, align)], &[placement(0, 0, UNIT + 1), placement(0, align, 1)]);
    let reserved = pool.reserve_planned(&gaps, "batch").unwrap();
    assert_eq!(pool.stats().reserved_bytes, 3 * UNIT);
    drop(reserved);
    assert_nothing_is_left(&memory, &pool);
    let mut placed = pool.place_planned(&gaps, &labels(&gaps)).unwrap();
    assert_eq!((memory.committed_bytes(), pool.stats().reserved_bytes), (3 * UNIT, 3 * UNIT));
    let addresses: Vec<u64> = placed.fragments.iter().map(|fragment| fragment.as_ptr() as u64).collect();
    assert_eq!((addresses[0] % align, addresses[1] - addresses[0]), (0, align));
    placed.fragments.iter_mut().for_each(|fragment| fragment.as_bytes_mut().unwrap().fill(7));
    drop(placed);
    assert_nothing_is_left(&memory, &pool);
}

#[test]
fn bases_that_outlive_their_region_bring_nothing_up_and_say_so() {
    let (memory, pool) = parted();
    let two = pool.lay_out([Request::new(3 * UNIT, 1 << 20); 2]).unwrap();
    for before in [false, true] {
        let reserved = pool.reserve_planned(&two, "batch").unwrap();
        let bases = reserved.bases();
        if before {
            bases.bring_up(|| false);
            bases.wait_for(0, 2 << 20).unwrap();
        }
        drop(reserved);
        assert_nothing_is_left(&memory, &pool);
        bases.clone().bring_up(|| false);
        assert_nothing_is_left(&memory, &pool);
        let error = bases.wait_for(0, 1).unwrap_err();
        match &error {
            Error::OutOfMemory { source, reserved: 0, .. } => {
                assert!(source.to_string().contains("given back"), "{source}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn who_waits_for_memory_that_is_given_back_is_told() {
    let (_memory, pool) = parted();
    let one = pool.lay_out([Request::new(3 * UNIT, 256)]).unwrap();
    let reserved = pool.reserve_planned(&one, "batch").unwrap();
    let bases = reserved.bases();
    let (told, tells) = mpsc::channel();
    // No one brings it up.
    thread::spawn(move || told.send(bases.wait_for(0, 1).is_err()));
    drop(reserved);
    pool.trim();
    assert_eq!(tells.recv_timeout(std::time::Duration::from_secs(60)), Ok(true));
}

#[test]
fn two_that_bring_up_at_once_wait_for_each_others_parts() {
    let (memory, pool) = parted();
    let one = pool.lay_out([Request::new(3 * UNIT, 256)]).unwrap();
    let mut reserved = pool.reserve_planned(&one, "batch").unwrap();
    let (begun, has_begun) = mpsc::channel();
    let (go, let_go) = mpsc::channel();
    *memory.gate.lock().unwrap() = Some((begun, let_go));
    let (first, second): (Bases, Bases) = (reserved.bases(), reserved.bases());
    thread::scope(|scope| {
        scope.spawn(|| first.bring_up(|| false));
        has_begun.recv().unwrap();
        let (asked, asks) = mpsc::channel();
        let memory = &memory;
        let second = scope.spawn(move || {
            second.bring_up(|| asked.send(()).is_err());
            memory.committed_bytes()
        });
        asks.recv().unwrap();
        // The first is still at the part that the second needs as well: were the second not to wait, it would end about now.
        (0..1000).for_each(|_| thread::yield_now());
        go.send(()).unwrap();
        assert_eq!(second.join().unwrap(), 3 * UNIT, "it counted a part as there that was only coming");
    });
    let mut placed = reserved.place(&one, labels(&one)).unwrap();
    placed.fragments[0].as_bytes_mut().unwrap().fill(7);
    drop((placed, reserved));
    assert_nothing_is_left(&memory, &pool);
}

#[test]
fn a_range_with_a_part_that_was_not_taken_back_is_not_released() {
    let (memory, pool) = parted();
    let one = pool.lay_out([Request::new(4 * UNIT, 256)]).unwrap();
    let placed = pool.place_planned(&one, &labels(&one)).unwrap();
    memory.fail_decommit.store(true, std::sync::atomic::Ordering::Relaxed);
    drop(placed);
    pool.trim();
    assert_eq!((memory.violations(), memory.ranges()), (Vec::new(), 1));
    let stats = pool.stats();
    assert_eq!((stats.lost_bytes, stats.reserved_bytes, stats.regions), (4 * UNIT, 0, 0));
}

#[test]
fn memory_is_placed_only_as_it_was_reserved() {
    let (memory, pool) = parted();
    let size = 8 * UNIT;
    let halves = layout(&[shape(size, 256)], &[placement(0, 0, UNIT), placement(0, 7 * UNIT, UNIT)]);
    let other = layout(&[shape(size, 256)], &[placement(0, 0, UNIT), placement(0, 3 * UNIT, UNIT)]);
    let mut reserved = pool.reserve_planned(&halves, "batch").unwrap();
    reserved.bases().bring_up(|| false);
    // It would lie where no memory comes.
    assert!(matches!(reserved.place(&other, labels(&other)), Err(Error::Batch { .. })));
    let one = layout(&[shape(size, 256)], &[placement(0, 0, UNIT)]);
    let placed = reserved.place(&one, labels(&one)).unwrap();
    pool.trim();
    // What no fragment of that layout touches goes back at once.
    assert_eq!((memory.committed_bytes(), pool.stats().reserved_bytes), (UNIT, UNIT));
    drop((placed, reserved));
    assert_nothing_is_left(&memory, &pool);
}

/// Untrue layouts, and what is wrong with each.
fn untrue() -> Vec<(&'static str, Layout)> {
    let one = |size, align, offset, bytes| layout(&[shape(size, align)], &[placement(0, offset, bytes)]);
    vec![
        ("alignment 0", one(256, 0, 0, 256)),
        ("alignment 3", one(256, 3, 0, 256)),
        ("alignment 1000", one(256, 1000, 0, 256)),
        ("does not begin at offset 0", one(256, 256, 128, 128)),
        ("past the end of the region", one(256, 256, 0, 257)),
        ("past 2^64", layout(&[shape(u64::MAX, 256)], &[placement(0, 0, 1), placement(0, 2, u64::MAX)])),
        ("larger than any address space", one(u64::MAX, 256, 0, u64::MAX)),
        ("larger than any address space", one(1 << 63, 256, 0, 1)),
        ("an alignment larger than any address space", one(256, 1 << 63, 0, 1)),
        ("an empty region", layout(&[shape(256, 256), shape(0, 256)], &[placement(0, 0, 256)])),
        ("a region without fragments", layout(&[shape(256, 256), shape(256, 256)], &[placement(0, 0, 256)])),
        ("no such region", layout(&[shape(256, 256)], &[placement(0, 0, 256), placement(1, 0, 1)])),
        ("no such region", layout(&[shape(256, 256)], &[placement(0, 0, 256), placement(u32::MAX, 0, 1)])),
        ("overlap", layout(&[shape(256, 256)], &[placement(0, 0, 256), placement(0, 128, 128)])),
        ("out of order", layout(&[shape(256, 256)], &[placement(0, 128, 128), placement(0, 0, 128)])),
        (
            "more than 2^64 in all",
            layout(&[shape(1 << 62, 1); 5], &[0, 1, 2, 3, 4].map(|region| placement(region, 0, 1))),
        ),
    ]
}

#[test]
fn an_untrue_layout_is_an_error_before_anything_is_reserved() {
    let whole = || Pool::builder(Arc::new(HostMemory::new()));
    let pools =
        [whole().build().unwrap(), whole().region_parts(RegionParts::Require).build().unwrap(), parted().1];
    for pool in pools {
        for (what, layout) in untrue() {
            let refused = |result: Option<Error>, how: &str| {
                assert!(matches!(result, Some(Error::Batch { .. })), "{how}, {what}: {result:?}");
                assert_eq!((pool.stats().reserved_bytes, pool.stats().regions), (0, 0), "{how}, {what}");
            };
            refused(pool.reserve_planned(&layout, "t").err(), "reserve");
            refused(pool.reserve_planned_apart(&layout, "t").err(), "reserve apart");
            refused(pool.place_planned(&layout, &labels(&layout)).err(), "place");
            let good = pool.lay_out([Request::new(256, 256)]).unwrap();
            let mut reserved = pool.reserve_planned(&good, "t").unwrap();
            assert!(reserved.place(&layout, labels(&layout)).is_err(), "{what}");
            let mut aligned = good.clone();
            aligned.regions[0].align = 1 << 40;
            assert!(reserved.place(&aligned, labels(&aligned)).is_err(), "aligned as it was not reserved");
            assert_eq!(reserved.place(&good, labels(&good)).unwrap().fragments.len(), 1, "{what}");
            drop(reserved);
            pool.trim();
        }
    }
}

#[test]
fn a_single_placement_that_no_memory_can_hold_is_an_error() {
    for pool in [Pool::new(HostMemory::new()).unwrap(), parted().1] {
        let kept = pool.place("kept", Request::new(256, 256)).unwrap();
        for (size, align) in
            [(u64::MAX, 1), (1 << 63, 1), (u64::MAX - 255, 256), (1, 1 << 63), (1 << 62, 1 << 62)]
        {
            let refused = pool.place("t", Request::new(size, align)).unwrap_err();
            assert!(matches!(refused, Error::OutOfMemory { .. }), "{size} at {align}: {refused:?}");
        }
        assert_eq!(pool.stats().fragments, 1);
        drop(kept);
    }
}

/// A batch, and what is done to its layout: extra units before a fragment and behind the region's end, and the order in which
/// the regions' fragments come.
#[derive(Debug, Clone)]
struct Batch {
    requests: Vec<(u64, u32)>,
    max_region: Option<u64>,
    gaps: Vec<u64>,
    tail: u64,
    interleave: bool,
    /// What a placement without bytes says, which means nothing.
    noise: (u32, u64),
}

fn batch() -> impl Strategy<Value = Batch> {
    let size = prop_oneof![1 => Just(0), 3 => 1..3000_u64, 3 => 1..(6 * UNIT)];
    let align = prop_oneof![3 => 0..9_u32, 2 => 9..22_u32, 1 => 22..33_u32];
    let gap = prop_oneof![4 => Just(0), 1 => 1..(3 * UNIT), 1 => 1..(1_u64 << 33)];
    let max_region = prop_oneof![2 => Just(None), 1 => (1..(8 * UNIT)).prop_map(Some)];
    (
        prop::collection::vec((size, align), 1..12),
        max_region,
        prop::collection::vec(gap, 12),
        0..(100 * UNIT),
        any::<bool>(),
        (any::<u32>(), any::<u64>()),
    )
        .prop_map(|(requests, max_region, gaps, tail, interleave, noise)| Batch {
            requests,
            max_region,
            gaps,
            tail,
            interleave,
            noise,
        })
}

impl Batch {
    fn layout(&self, pool: &Pool) -> Layout {
        let requests = self.requests.iter().map(|&(size, align)| Request::new(size, 1 << align));
        let mut layout = pool.lay_out(requests).unwrap();
        let mut moved = vec![0; layout.regions.len()];
        for (placement, &gap) in layout.placements.iter_mut().zip(&self.gaps) {
            if placement.bytes == 0 {
                (placement.region, placement.offset) = self.noise;
                continue;
            }
            let moved = &mut moved[placement.region as usize];
            // The first of a region lies at its start.
            *moved += if placement.offset == 0 { 0 } else { gap };
            placement.offset += *moved;
        }
        for (region, moved) in layout.regions.iter_mut().zip(moved) {
            region.size += moved + self.tail;
        }
        if self.interleave {
            // Those of a region stay in their order.
            let mut turn = vec![0; layout.regions.len()];
            layout.placements.sort_by_cached_key(|placement| {
                let turn = turn.get_mut(placement.region as usize);
                turn.map_or(0, |turn| {
                    *turn += 1;
                    *turn
                })
            });
        }
        layout
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    BringUp,
    Place,
    Drop(usize),
    DropReserved,
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::BringUp),
        2 => Just(Step::Place),
        6 => any::<usize>().prop_map(Step::Drop),
        1 => Just(Step::DropReserved),
        3 => Just(Step::Trim),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the layout, and whenever it is brought up, placed and dropped: the memory's promises are kept, what live
    /// fragments touch is there, and in the end nothing is.
    #[test]
    fn no_layout_and_no_order_of_drops_breaks_a_promise_of_the_memory(
        batch in batch(), steps in prop::collection::vec(step(), 1..40), at_once in any::<bool>(),
    ) {
        let memory = Arc::new(Parted::default());
        let mut builder = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).region_parts(RegionParts::Require);
        if let Some(bytes) = batch.max_region.and_then(std::num::NonZeroU64::new) {
            builder = builder.max_region_bytes(bytes);
        }
        let (recorder, log) = events::recorder(10_000);
        let pool = builder.events(recorder).build().unwrap();
        let layout = batch.layout(&pool);
        let mut reserved = Some(pool.reserve_planned(&layout, "batch").unwrap());
        let bases = reserved.as_ref().unwrap().bases();
        let (mut live, mut came) = (Vec::new(), false);
        thread::scope(|scope| {
            if at_once {
                let clone = bases.clone();
                scope.spawn(move || clone.bring_up(|| false));
            }
            for &step in &steps {
                match step {
                    Step::BringUp => {
                        bases.bring_up(|| false);
                        came = true;
                    }
                    Step::Place => {
                        let placed = reserved.as_mut().map(|reserved| reserved.place(&layout, labels(&layout)));
                        if let Some(Ok(placed)) = placed {
                            live = placed.fragments;
                        }
                    }
                    Step::Drop(n) if !live.is_empty() => drop(live.swap_remove(n % live.len())),
                    Step::Drop(_) => {}
                    Step::DropReserved => drop(reserved.take()),
                    Step::Trim => pool.trim(),
                }
                for fragment in live.iter_mut().filter(|_| came) {
                    if let Some(bytes) = fragment.as_bytes_mut().filter(|bytes| !bytes.is_empty()) {
                        let last = bytes.len() - 1;
                        (bytes[0], bytes[last]) = (1, 2);
                    }
                }
            }
        });
        drop((live, reserved));
        pool.trim();
        bases.bring_up(|| false);
        pool.trim();
        prop_assert_eq!(memory.violations(), Vec::<String>::new());
        prop_assert_eq!((memory.committed_bytes(), memory.ranges()), (0, 0));
        let stats = pool.stats();
        prop_assert_eq!((stats.reserved_bytes, stats.regions, stats.lost_bytes), (0, 0, 0));
        pool.close();
        // Reading the log checks that it is consistent.
        let read = Log::read(&log.write_to(Vec::new()).unwrap()[..]);
        prop_assert!(read.is_ok(), "{:?}", read.err());
    }
}
