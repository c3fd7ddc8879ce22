use proptest::prelude::*;

use super::*;

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

    /// Offset and length of the block that exact best fit takes.
    fn best(&self, request: Request) -> Option<(u64, u64)> {
        let fits = |&(start, end): &(u64, u64)| {
            let offset = start.checked_next_multiple_of(request.align)?;
            (offset.checked_add(request.size)? <= end).then_some((end - start, start, offset, end))
        };
        let (_, _, offset, end) = self.gaps().iter().filter_map(fits).min()?;
        let rounded = (offset + request.size).checked_next_multiple_of(self.granule).unwrap_or(u64::MAX);
        Some((offset, rounded.min(end) - offset))
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
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn best_fit_agrees_with_the_oracle(
        capacity in prop_oneof![0..50_000_u64, Just(0)], shift in 0..9_u32, steps in prop::collection::vec(step(), 1..200)
    ) {
        let granule = 1 << shift;
        let mut space = BestFit::new(capacity, granule);
        let mut oracle = Oracle { capacity, granule, live: Vec::new() };
        let mut stale: Vec<Key> = Vec::new();
        let mut empty: Vec<Key> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate(0, shift) => empty.push(space.allocate(Request::new(0, 1 << shift)).unwrap().key),
                Step::Allocate(size, shift) => {
                    let request = Request::new(size, 1 << shift);
                    let (got, expected) = (space.allocate(request), oracle.best(request));
                    prop_assert_eq!(got.map(|got| got.offset), expected.map(|(offset, _)| offset));
                    if let (Some(got), Some((offset, length))) = (got, expected) {
                        oracle.live.push((offset, length, got.key));
                    }
                }
                Step::Free(n) if !oracle.live.is_empty() => {
                    let (_, length, key) = oracle.live.swap_remove(n % oracle.live.len());
                    prop_assert_eq!(space.free(key), Ok(length));
                    stale.push(key);
                }
                Step::Free(_) => if let Some(key) = empty.pop() {
                    prop_assert_eq!(space.free(key), Ok(0));
                    stale.push(key);
                }
                Step::FreeStale(n) if !stale.is_empty() => {
                    prop_assert_eq!(space.free(stale[n % stale.len()]), Err(StaleKey));
                }
                Step::FreeStale(_) => {}
                Step::Carve(n, gaps) if !oracle.live.is_empty() => {
                    let index = n % oracle.live.len();
                    let (start, length, key) = oracle.live[index];
                    let mut offsets = vec![0];
                    offsets.extend(gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }));
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
        for key in oracle.live.iter().map(|&(_, _, key)| key).chain(empty) {
            prop_assert!(space.free(key).is_ok());
        }
        space.check();
        prop_assert!(space.is_empty() && space.largest_free() == capacity && space.blocks().count() <= 1);
    }
}

#[test]
fn a_space_of_exactly_the_sum_holds_everything_with_its_tail_unrounded() {
    for last in [1, 200, 255, 256] {
        let sizes = [256, 1024, 100, 4096, last];
        let capacity: u64 =
            sizes[..4].iter().map(|size: &u64| size.next_multiple_of(256)).sum::<u64>() + last;
        let mut space = BestFit::new(capacity, 256);
        let keys: Vec<Key> = sizes
            .iter()
            .map(|&size| space.allocate(Request::new(size, 256)).expect("an exact fit").key)
            .collect();
        assert_eq!((space.free_bytes(), space.largest_free()), (0, 0));
        assert_eq!(space.allocate(Request::new(1, 1)), None);
        // Each hole takes back just what it held.
        for (index, &size) in sizes.iter().enumerate() {
            let before = space.allocate(Request::new(size, 256));
            assert_eq!(before, None);
            space.free(keys[index]).unwrap();
            space.allocate(Request::new(size, 256)).expect("an exact fit");
        }
        space.check();
    }
}

#[test]
fn stale_keys_never_free_a_later_block() {
    let mut space = BestFit::new(1024, 1);
    let first = space.allocate(Request::new(100, 1)).unwrap();
    space.free(first.key).unwrap();
    let second = space.allocate(Request::new(100, 1)).unwrap();
    assert_eq!(second.offset, first.offset);
    assert_eq!(space.free(first.key), Err(StaleKey));
    assert_eq!(space.carve(first.key, &[0]), Err(CarveError::Stale(StaleKey)));
    assert_eq!(space.live_blocks(), 1);
}

#[test]
fn empty_blocks_are_distinct_and_granted_in_a_full_space() {
    let mut space = BestFit::new(0, 256);
    let (one, two) =
        (space.allocate(Request::new(0, 256)).unwrap(), space.allocate(Request::new(0, 256)).unwrap());
    assert_ne!(one.key, two.key);
    assert!(!space.is_empty());
    assert_eq!((space.free(one.key), space.free(one.key)), (Ok(0), Err(StaleKey)));
    assert_eq!(space.free(two.key), Ok(0));
    assert!(space.is_empty());
}

#[test]
fn offsets_beyond_32_bits_are_exact() {
    let mut space = BestFit::new(u64::MAX, 256);
    let low = space.allocate(Request::new((1 << 40) + 1, 256)).unwrap();
    let high = space.allocate(Request::new(1 << 50, 1 << 45)).unwrap();
    assert_eq!((low.offset, high.offset), (0, 1 << 45));
    let rest = space.allocate(Request::new(space.largest_free(), 1)).unwrap();
    assert_eq!(rest.offset, (1 << 45) + (1 << 50));
    assert_eq!(space.allocate(Request::new(u64::MAX, 1 << 63)), None);
    space.check();
    for key in [high.key, low.key, rest.key] {
        space.free(key).unwrap();
    }
    assert_eq!(space.largest_free(), u64::MAX);
}

#[test]
fn freeing_neighbours_coalesces_in_any_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut space = BestFit::new(3 * 256, 256);
        let keys = [(); 3].map(|()| space.allocate(Request::new(256, 256)).unwrap().key);
        for index in order {
            space.free(keys[index]).unwrap();
            space.check();
        }
        assert_eq!((space.largest_free(), space.blocks().count()), (768, 1));
    }
}

#[test]
fn any_granule_is_usable() {
    for (granule, taken) in [(0, 3), (1, 3), (3, 4), (1 << 40, 1000), (u64::MAX, 1000)] {
        let mut space = BestFit::new(1000, granule);
        let key = space.allocate(Request::new(3, 1)).unwrap().key;
        assert_eq!(space.free(key), Ok(taken), "granule {granule}");
        assert_eq!(space.allocate(Request::new(1, 3)), None);
    }
}
