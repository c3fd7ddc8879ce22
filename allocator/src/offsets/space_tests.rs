use proptest::prelude::*;

use super::bins::class_of;
use super::*;

const POLICIES: [Policy; 2] = [Policy::BestFit, Policy::Segregated];

/// Runs a test with a space of each policy.
fn each(capacity: u64, granule: u64, test: impl Fn(Space)) {
    for policy in POLICIES {
        test(Space::with_policy(policy, capacity, granule));
    }
}

/// The naive oracle: live intervals in a list; a search looks at every gap.
struct Oracle {
    capacity: u64,
    granule: u64,
    /// Offset, length and key of the live blocks that are not empty.
    live: Vec<(u64, u64, Key)>,
}

impl Oracle {
    fn gaps(&self) -> Vec<(u64, u64)> {
        let mut live: Vec<(u64, u64)> =
            self.live.iter().map(|&(offset, size, _)| (offset, offset + size)).collect();
        live.sort_unstable();
        live.push((self.capacity, self.capacity));
        let mut gaps = Vec::new();
        let mut end = 0;
        for (start, stop) in live {
            if start > end {
                gaps.push((end, start));
            }
            end = stop;
        }
        gaps
    }

    /// The gaps that hold a request: length, start and end, the best fit first.
    fn holding(&self, request: Request) -> Vec<(u64, u64, u64)> {
        let mut gaps: Vec<(u64, u64, u64)> = self
            .gaps()
            .into_iter()
            .filter(|&(start, end)| {
                let offset = start.checked_next_multiple_of(request.align);
                offset.and_then(|offset| offset.checked_add(request.size)).is_some_and(|stop| stop <= end)
            })
            .map(|(start, end)| (end - start, start, end))
            .collect();
        gaps.sort_unstable();
        gaps
    }

    /// Offset and length of the block that a request gets in a gap that holds it.
    fn placed(&self, request: Request, start: u64, end: u64) -> (u64, u64) {
        let low = start.next_multiple_of(request.align);
        let rounded = (low + request.size).checked_next_multiple_of(self.granule).unwrap_or(u64::MAX);
        let at_low = (low, rounded.min(end) - low);
        let live_size = |found: &dyn Fn(u64, u64) -> bool| {
            self.live.iter().find(|&&(offset, size, _)| found(offset, size)).map_or(0, |&(_, size, _)| size)
        };
        let below = live_size(&|offset, size| offset + size == start);
        let above = live_size(&|offset, _| offset == end);
        let high = (end - request.size) / self.granule * self.granule;
        let fits_at_end =
            end.is_multiple_of(self.granule) && high.is_multiple_of(request.align) && high >= low;
        if above - above / 4 > below && fits_at_end { (high, end - high) } else { at_low }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u64, u32),
    Free(usize),
    FreeStale(usize),
    Carve(usize, Vec<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![1 => Just(0), 6 => 1..600_u64, 3 => 600..20_000_u64];
    prop_oneof![
        6 => (size, prop_oneof![4 => Just(4_u32), 1 => 0..12_u32]).prop_map(|(size, shift)| Step::Allocate(size, shift)),
        4 => any::<usize>().prop_map(Step::Free),
        1 => any::<usize>().prop_map(Step::FreeStale),
        1 => (any::<usize>(), prop::collection::vec(1..200_u64, 0..4)).prop_map(|(n, gaps)| Step::Carve(n, gaps)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_policy_agrees_with_the_oracle(
        // Small ones too, where the only free block is what a request leaves, and whole granules, where it may leave none.
        capacity in prop_oneof![3 => 0..50_000_u64, 3 => 0..3000_u64, 1 => Just(0)], whole in any::<bool>(),
        shift in 0..9_u32, scale in prop_oneof![Just(0), Just(48)], steps in prop::collection::vec(step(), 1..200)
    ) {
        let capacity = if whole { capacity >> shift << shift } else { capacity };
        for policy in POLICIES {
            let space = Space::with_policy(policy, capacity << scale, 1 << shift);
            run(space, 1 << shift, scale, &steps)?;
        }
    }
}

/// Runs steps on a space and on the oracle. Sizes are times 2^scale, so that offsets come near 2^64.
fn run(mut space: Space, granule: u64, scale: u32, steps: &[Step]) -> Result<(), TestCaseError> {
    let capacity = space.capacity();
    let mut oracle = Oracle { capacity, granule, live: Vec::new() };
    let mut stale: Vec<Key> = Vec::new();
    let mut empty: Vec<Key> = Vec::new();
    for step in steps.iter().cloned() {
        match step {
            Step::Allocate(0, shift) => empty.push(space.allocate(Request::new(0, 1 << shift)).unwrap().key),
            Step::Allocate(size, shift) => {
                let request = Request::new(size << scale, 1 << shift);
                let (got, holding) = (space.allocate(request), oracle.holding(request));
                prop_assert_eq!(got.is_some(), !holding.is_empty(), "granted if any gap holds it");
                if let Some(got) = got {
                    let gap = match space.policy() {
                        Policy::BestFit => holding[0],
                        Policy::Segregated => good_gap(request, got.offset, &holding)?,
                    };
                    let (offset, length) = oracle.placed(request, gap.1, gap.2);
                    prop_assert_eq!(got.offset, offset);
                    prop_assert!(offset.is_multiple_of(request.align));
                    oracle.live.push((offset, length, got.key));
                }
            }
            Step::Free(n) if !oracle.live.is_empty() => {
                let (_, length, key) = oracle.live.swap_remove(n % oracle.live.len());
                prop_assert_eq!(space.free(key), Ok(length));
                stale.push(key);
            }
            Step::Free(_) => {
                if let Some(key) = empty.pop() {
                    prop_assert_eq!(space.free(key), Ok(0));
                    stale.push(key);
                }
            }
            Step::FreeStale(n) if !stale.is_empty() => {
                prop_assert_eq!(space.free(stale[n % stale.len()]), Err(StaleKey));
            }
            Step::FreeStale(_) => {}
            Step::Carve(n, gaps) if !oracle.live.is_empty() => {
                let index = n % oracle.live.len();
                let (start, length, key) = oracle.live[index];
                let mut offsets = vec![0];
                offsets.extend(gaps.iter().scan(0, |at, gap| {
                    *at += gap << scale;
                    Some(*at)
                }));
                let carved = space.carve(key, &offsets);
                if offsets.iter().any(|&offset| offset >= length) {
                    let refused = matches!(carved, Err(CarveError::Offsets { .. }));
                    prop_assert!(refused);
                } else {
                    oracle.live.swap_remove(index);
                    stale.push(key);
                    let ends = offsets[1..].iter().copied().chain([length]);
                    for ((offset, end), key) in offsets.iter().zip(ends).zip(carved.unwrap()) {
                        oracle.live.push((start + offset, end - offset, key));
                    }
                }
            }
            Step::Carve(..) => {}
        }
        space.check();
        let gaps = oracle.gaps();
        prop_assert_eq!(space.free_bytes(), gaps.iter().map(|(start, end)| end - start).sum::<u64>());
        prop_assert_eq!(space.largest_free(), gaps.iter().map(|(start, end)| end - start).max().unwrap_or(0));
        prop_assert_eq!(space.live_blocks(), oracle.live.len() + empty.len());
    }
    let listed: Vec<(u64, u64, Key)> =
        space.blocks().filter_map(|block| Some((block.offset, block.size, block.key?))).collect();
    oracle.live.sort_unstable_by_key(|&(offset, ..)| offset);
    prop_assert_eq!(&listed, &oracle.live);
    for key in oracle.live.iter().map(|&(_, _, key)| key).chain(empty) {
        prop_assert!(space.free(key).is_ok());
    }
    space.check();
    prop_assert!(space.is_empty() && space.largest_free() == capacity && space.blocks().count() <= 1);
    Ok(())
}

/// The gap that an offset lies in, if segregated fit may choose it: it is of the request's own class, or no gap that
/// holds the request is of a class between.
fn good_gap(
    request: Request,
    offset: u64,
    holding: &[(u64, u64, u64)],
) -> Result<(u64, u64, u64), TestCaseError> {
    let gap = holding.iter().find(|&&(_, start, end)| start <= offset && offset < end);
    let Some(&gap) = gap else { return Err(TestCaseError::fail("not in a gap that holds the request")) };
    let (own, chosen) = (class_of(request.size), class_of(gap.0));
    let between = holding.iter().map(|gap| class_of(gap.0)).any(|class| own < class && class < chosen);
    prop_assert!(!between, "a gap of a nearer class holds the request");
    Ok(gap)
}

#[test]
fn a_space_of_exactly_the_sum_holds_everything_with_its_tail_unrounded() {
    for last in [1, 200, 255, 256] {
        let sizes = [256, 1024, 100, 4096, last];
        let capacity: u64 =
            sizes[..4].iter().map(|size: &u64| size.next_multiple_of(256)).sum::<u64>() + last;
        each(capacity, 256, |mut space| {
            let keys: Vec<Key> = sizes
                .iter()
                .map(|&size| space.allocate(Request::new(size, 256)).expect("an exact fit").key)
                .collect();
            assert_eq!((space.free_bytes(), space.largest_free()), (0, 0));
            assert_eq!(space.allocate(Request::new(1, 1)), None);
            // Each hole takes back just what it held.
            for (index, &size) in sizes.iter().enumerate() {
                assert_eq!(space.allocate(Request::new(size, 256)), None);
                space.free(keys[index]).unwrap();
                space.allocate(Request::new(size, 256)).expect("an exact fit");
            }
            space.check();
        });
    }
}

#[test]
fn a_space_that_was_emptied_in_order_fills_again() {
    each(4 * 256, 256, |mut space| {
        for _ in 0..3 {
            let placed = [256, 512, 200].map(|size| {
                let placed = space.allocate(Request::new(size, 256)).unwrap();
                space.check();
                placed
            });
            assert_eq!(placed.map(|placed| placed.offset), [0, 256, 768]);
            assert_eq!((space.free_bytes(), space.allocate(Request::new(1, 1))), (0, None));
            for placed in placed {
                space.free(placed.key).unwrap();
                space.check();
            }
        }
    });
}

/// Frees every second block of a full space, so that there are holes of these sizes between live blocks.
fn with_holes(space: &mut Space, holes: &[u64]) -> Vec<u64> {
    let placed: Vec<[Allocation; 2]> = holes
        .iter()
        .map(|&hole| [hole, 256].map(|size| space.allocate(Request::new(size, 1)).unwrap()))
        .collect();
    placed
        .iter()
        .map(|[hole, _]| {
            space.free(hole.key).unwrap();
            space.check();
            hole.offset
        })
        .collect()
}

#[test]
fn the_loose_block_is_compared_with_those_in_bins() {
    // In every order, so that each hole is once the one that is freed first and stays in no bin.
    for holes in [[512, 768, 1024], [768, 512, 1024], [1024, 768, 512], [1024, 512, 768]] {
        each(holes.iter().sum::<u64>() + 3 * 256, 256, |mut space| {
            let offsets = with_holes(&mut space, &holes);
            for size in [512, 768, 1024] {
                let at = holes.iter().position(|&hole| hole == size).unwrap();
                let got = space.allocate(Request::new(size, 256)).unwrap();
                assert_eq!(got.offset, offsets[at], "{size} among {holes:?}");
                space.check();
            }
            assert_eq!(space.free_bytes(), 0);
        });
    }
}

#[test]
fn the_one_block_of_a_class_that_is_large_enough_is_found() {
    // Both holes are of the request's class; segregated fit sees the first of them only, before it searches.
    let (small, large) = ((1 << 20) + 256, (1 << 20) + 1024);
    assert_eq!(class_of(small), class_of(large));
    for holes in [[small, large], [large, small]] {
        each(small + large + 512, 256, |mut space| {
            let offsets = with_holes(&mut space, &holes);
            let at = holes.iter().position(|&hole| hole == large).unwrap();
            let got = space.allocate(Request::new(large, 256)).expect("a block holds it");
            assert_eq!(got.offset, offsets[at]);
        });
    }
}

#[test]
fn an_alignment_that_few_blocks_have_is_found() {
    each(64 << 20, 256, |mut space| {
        // A hole at an odd place and one, of the same size, at a multiple of 1 MiB.
        let odd = space.allocate(Request::new(1 << 20, 256)).unwrap();
        let wall = space.allocate(Request::new(256, 256)).unwrap();
        let hole = space.allocate(Request::new(1 << 20, 1 << 20)).unwrap();
        let rest = space.allocate(Request::new(space.largest_free(), 1)).unwrap();
        let pad = space.allocate(Request::new((1 << 20) - 256, 256)).unwrap();
        assert_eq!((odd.offset, wall.offset, hole.offset, space.free_bytes()), (0, 1 << 20, 2 << 20, 0));
        for key in [hole.key, odd.key] {
            space.free(key).unwrap();
        }
        for offset in [0, 2 << 20] {
            let got = space.allocate(Request::new(1 << 20, 1 << 20)).unwrap();
            assert!(got.offset.is_multiple_of(1 << 20), "{offset}");
        }
        assert_eq!(space.allocate(Request::new(1, 1)), None);
        space.check();
        for key in [wall.key, rest.key, pad.key] {
            space.free(key).unwrap();
        }
    });
}

#[test]
fn a_request_lies_by_the_larger_neighbour() {
    for (below, above, offset) in [(1024, 4096, 1024 + 768), (4096, 1024, 4096), (1024, 1280, 1024)] {
        each(below + 1024 + above, 256, |mut space| {
            // The second time, there are nodes to use again.
            for _ in 0..2 {
                let [first, hole, last] =
                    [below, 1024, above].map(|size| space.allocate(Request::new(size, 256)).unwrap().key);
                space.free(hole).unwrap();
                let got = space.allocate(Request::new(200, 256)).unwrap();
                assert_eq!(got.offset, offset);
                space.check();
                for key in [first, got.key, last] {
                    space.free(key).unwrap();
                }
            }
        });
    }
}

#[test]
fn stale_keys_never_free_a_later_block() {
    each(1024, 1, |mut space| {
        let first = space.allocate(Request::new(100, 1)).unwrap();
        space.free(first.key).unwrap();
        let second = space.allocate(Request::new(100, 1)).unwrap();
        assert_eq!(second.offset, first.offset);
        assert_eq!(space.free(first.key), Err(StaleKey));
        assert_eq!(space.carve(first.key, &[0]), Err(CarveError::Stale(StaleKey)));
        assert_eq!(space.live_blocks(), 1);
    });
}

#[test]
fn empty_blocks_are_distinct_and_granted_in_a_full_space() {
    each(0, 256, |mut space| {
        let [one, two] = [(); 2].map(|()| space.allocate(Request::new(0, 256)).unwrap());
        assert_ne!(one.key, two.key);
        assert_eq!(space.allocate(Request::new(0, 3)), None);
        assert!(!space.is_empty());
        assert_eq!((space.free(one.key), space.free(one.key)), (Ok(0), Err(StaleKey)));
        assert_eq!(space.free(two.key), Ok(0));
        assert!(space.is_empty());
        space.check();
    });
}

#[test]
fn offsets_beyond_32_bits_are_exact() {
    each(u64::MAX, 256, |mut space| {
        let low = space.allocate(Request::new((1 << 40) + 1, 256)).unwrap();
        let high = space.allocate(Request::new(1 << 50, 1 << 45)).unwrap();
        assert_eq!((low.offset, high.offset), (0, 1 << 45));
        let rest = space.allocate(Request::new(space.largest_free(), 1)).unwrap();
        assert_eq!(rest.offset, (1 << 45) + (1 << 50));
        assert_eq!(space.allocate(Request::new(u64::MAX, 1 << 63)), None);
        assert_eq!(space.allocate(Request::new(u64::MAX, 1)), None);
        space.check();
        for key in [high.key, low.key, rest.key] {
            space.free(key).unwrap();
        }
        assert_eq!(space.largest_free(), u64::MAX);
        let all = space.allocate(Request::new(u64::MAX, 1)).unwrap();
        assert_eq!((all.offset, space.free_bytes()), (0, 0));
        space.check();
    });
}

#[test]
fn freeing_neighbours_coalesces_in_any_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        each(3 * 256, 256, |mut space| {
            let keys = [(); 3].map(|()| space.allocate(Request::new(256, 256)).unwrap().key);
            for index in order {
                space.free(keys[index]).unwrap();
                space.check();
            }
            assert_eq!((space.largest_free(), space.blocks().count()), (768, 1));
        });
    }
}

#[test]
fn any_granule_is_usable() {
    for (granule, taken) in [(0, 3), (1, 3), (3, 4), (1 << 40, 1000), (u64::MAX, 1000)] {
        each(1000, granule, |mut space| {
            let key = space.allocate(Request::new(3, 1)).unwrap().key;
            assert_eq!(space.free(key), Ok(taken), "granule {granule}");
            for align in [0, 3, u64::MAX] {
                assert_eq!(space.allocate(Request::new(1, align)), None);
            }
        });
    }
}
