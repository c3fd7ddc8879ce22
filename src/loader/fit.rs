//! The plan of a load in batches: how long batches are and how many are read ahead, so that all fits into the memory there is. Pure.
//!
//! While the consumer works on one batch, the next ones are read: *ahead* of them. Of a batch it may keep tensors, whose memory adds up; the others'
//! goes when the consumer asks for the next batch. So the most memory is taken by all that is kept up to the last batch that is read, and the rest
//! of the batches from the one that the consumer has to that one.
//!
//! # Invariants
//! - **B1** Each tensor is in exactly one batch; batches and the tensors in them are in the order of the file.
//! - **B2** A batch of more than one tensor has at most as many bytes of tensors as was asked for.
//! - **B3** Whatever the consumer is at, what is kept and what is in flight take no more than the peak, which is within the room.

use std::ops::Range;

use super::plan::TENSOR_ALIGN;

/// A tensor to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) bytes: u64,
    /// The consumer keeps it.
    pub(super) kept: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// The most bytes of a batch of several tensors.
    pub(super) max_batch_bytes: u64,
    /// How many batches are read ahead, at most.
    pub(super) ahead: usize,
    /// All regions are as long as the longest.
    pub(super) even: bool,
    /// Regions take multiples of so many bytes; more than 0.
    pub(super) unit: u64,
    /// How much memory there is, if that is limited.
    pub(super) room: Option<u64>,
}

/// Batches that fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fit {
    /// The tensors of each batch.
    pub(super) batches: Vec<Range<usize>>,
    pub(super) max_batch_bytes: u64,
    pub(super) ahead: usize,
    /// The most memory that is taken, in bytes.
    pub(super) peak_bytes: u64,
    /// The longest region of tensors that are not kept.
    pub(super) longest_bytes: u64,
}

/// Why no batches fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Short {
    /// The least memory that would do.
    pub(super) needed: u64,
    /// The tensor that takes it, and what has been kept by then.
    pub(super) tensor: usize,
    pub(super) kept: u64,
}

/// Batches that are shorter than this take longer to begin and to end than to read; before batches are as short, fewer are read ahead.
const LEAST_AHEAD_BYTES: u64 = 16 << 20;

/// Shorter batches are no better than one tensor at a time.
const LEAST_BYTES: u64 = 1 << 20;

/// Regions of a batch, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Regions {
    kept: u64,
    passing: u64,
}

impl Regions {
    fn add(&mut self, item: Item) {
        let region = if item.kept { &mut self.kept } else { &mut self.passing };
        if item.bytes > 0 {
            let start = region.checked_next_multiple_of(TENSOR_ALIGN).unwrap_or(u64::MAX);
            *region = start.saturating_add(item.bytes);
        }
    }

    /// The same as the memory has them.
    fn whole(&self, unit: u64) -> Self {
        let whole = |bytes: u64| bytes.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
        Self { kept: whole(self.kept), passing: whole(self.passing) }
    }
}

/// Tensors in batches of so many bytes.
struct Parted {
    max_batch_bytes: u64,
    batches: Vec<Range<usize>>,
    regions: Vec<Regions>,
}

impl Parted {
    fn new(items: &[Item], max_batch_bytes: u64, unit: u64) -> Self {
        let (mut batches, mut regions) = (Vec::new(), Vec::new());
        let (mut first, mut bytes, mut open) = (0, 0_u64, Regions::default());
        for (index, item) in items.iter().enumerate() {
            let with = bytes.saturating_add(item.bytes);
            if index > first && with > max_batch_bytes {
                batches.push(first..index);
                regions.push(open.whole(unit));
                (first, bytes, open) = (index, item.bytes, Regions::default());
            } else {
                bytes = with;
            }
            open.add(*item);
        }
        if first < items.len() {
            batches.push(first..items.len());
            regions.push(open.whole(unit));
        }
        Self { max_batch_bytes, batches, regions }
    }

    fn longest(&self) -> u64 {
        self.regions.iter().map(|regions| regions.passing).max().unwrap_or_default()
    }

    /// The most memory that is taken with so many batches read ahead, and the batch that is read last by then.
    fn peak(&self, ahead: usize, even: bool) -> (u64, usize) {
        let longest = self.longest();
        let passing = |regions: &Regions| if even { longest } else { regions.passing };
        let (mut peak, mut kept, mut in_flight) = ((0, 0), 0_u64, 0_u64);
        for (last, regions) in self.regions.iter().enumerate() {
            kept = kept.saturating_add(regions.kept);
            in_flight = in_flight.saturating_add(passing(regions));
            // The consumer has given back what came before the one that it has.
            if let Some(gone) = last.checked_sub(ahead).and_then(|at| at.checked_sub(1)) {
                in_flight = in_flight.saturating_sub(passing(&self.regions[gone]));
            }
            let taken = kept.saturating_add(in_flight);
            if taken > peak.0 {
                peak = (taken, last);
            }
        }
        peak
    }

    fn into_fit(self, ahead: usize, even: bool) -> Fit {
        let (peak_bytes, longest_bytes) = (self.peak(ahead, even).0, self.longest());
        let Self { max_batch_bytes, batches, .. } = self;
        Fit { batches, max_batch_bytes, ahead, peak_bytes, longest_bytes }
    }
}

/// Batches as long, and as many of them ahead, as was asked for, if they fit; else the longest of which one or more can be read ahead; else the
/// longest that fit one after the other.
///
/// # Errors
/// When there is no room for one tensor after the other.
pub(super) fn fit(items: &[Item], wish: Wish) -> Result<Fit, Short> {
    let Wish { max_batch_bytes, ahead, even, unit, room } = wish;
    let room = room.unwrap_or(u64::MAX);
    let halves = |least: u64| {
        let shorter = move |bytes: &u64| Some(bytes / 2).filter(|half| *half >= least);
        std::iter::successors(Some(max_batch_bytes), shorter)
    };
    if ahead > 0 {
        for bytes in halves(LEAST_AHEAD_BYTES) {
            let parted = Parted::new(items, bytes, unit);
            // Reading more ahead never takes less; more than there are is the same as all.
            let (mut most, mut too_many) = (0, ahead.min(parted.batches.len()).max(1) + 1);
            while too_many - most > 1 {
                let some = usize::midpoint(most, too_many);
                let fits = parted.peak(some, even).0 <= room;
                *(if fits { &mut most } else { &mut too_many }) = some;
            }
            if most > 0 {
                return Ok(parted.into_fit(most, even));
            }
        }
    }
    for bytes in halves(LEAST_BYTES).chain([0]) {
        let parted = Parted::new(items, bytes, unit);
        if parted.peak(0, even).0 <= room {
            return Ok(parted.into_fit(0, even));
        }
    }
    let alone = Parted::new(items, 0, unit);
    let (needed, batch) = alone.peak(0, even);
    let kept = alone.regions.iter().take(batch).map(|regions| regions.kept).sum();
    Err(Short { needed, tensor: alone.batches.get(batch).map_or(0, |batch| batch.end - 1), kept })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn items(sizes: &[u64]) -> Vec<Item> {
        sizes.iter().map(|&bytes| Item { bytes, kept: false }).collect()
    }

    fn wish(max_batch_bytes: u64, ahead: usize, room: Option<u64>) -> Wish {
        Wish { max_batch_bytes, ahead, even: false, unit: 1, room }
    }

    #[test]
    fn batches_end_before_the_tensor_that_would_make_them_too_long() {
        let fit = fit(&items(&[40, 60, 0, 1, 300, 99, 0]), wish(100, 2, None)).unwrap();
        assert_eq!(fit.batches, [0..3, 3..4, 4..5, 5..7]);
        assert_eq!((fit.ahead, fit.max_batch_bytes), (2, 100));
        assert!(super::fit(&[], wish(100, 2, None)).unwrap().batches.is_empty());
    }

    #[test]
    fn without_room_batches_become_shorter_before_nothing_is_read_ahead_and_shorter_still_after_that() {
        let all = items(&[MIB; 256]);
        let with = |room: u64| {
            let fit = fit(&all, wish(128 * MIB, 3, Some(room * MIB))).unwrap();
            (fit.max_batch_bytes / MIB, fit.ahead, fit.peak_bytes / MIB)
        };
        assert_eq!(with(512), (128, 2, 256));
        assert_eq!(with(255), (64, 2, 192));
        assert_eq!(with(32), (16, 1, 32));
        assert_eq!(with(31), (16, 0, 16));
        assert_eq!(with(1), (1, 0, 1));
        let short = fit(&all, wish(128 * MIB, 3, Some(MIB - 1))).unwrap_err();
        assert_eq!(short, Short { needed: MIB, tensor: 0, kept: 0 });
    }

    #[test]
    fn what_is_kept_adds_up_and_the_rest_does_not() {
        let mut all = items(&[10 * MIB; 8]);
        all[1].kept = true;
        all[6].kept = true;
        let room = |room| fit(&all, wish(10 * MIB, 0, Some(room * MIB)));
        assert_eq!(room(30).unwrap().peak_bytes, 30 * MIB);
        assert_eq!(room(29).unwrap_err(), Short { needed: 30 * MIB, tensor: 7, kept: 20 * MIB });
        let all: Vec<Item> = all.iter().map(|item| Item { kept: true, ..*item }).collect();
        assert_eq!(fit(&all, wish(20 * MIB, 9, Some(80 * MIB))).unwrap().peak_bytes, 80 * MIB);
        let short = fit(&all, wish(20 * MIB, 9, Some(80 * MIB - 1))).unwrap_err();
        assert_eq!(short, Short { needed: 80 * MIB, tensor: 7, kept: 70 * MIB });
    }

    #[test]
    fn even_regions_count_as_the_longest() {
        let all = items(&[MIB, 5 * MIB, MIB, MIB]);
        let even = Wish { even: true, ..wish(MIB, 1, None) };
        let fit = fit(&all, even).unwrap();
        assert_eq!((fit.peak_bytes, fit.longest_bytes), (10 * MIB, 5 * MIB));
    }

    #[test]
    fn as_many_batches_ahead_as_there_are_numbers_take_no_time() {
        let all = items(&[1; 100_000]);
        let fit = fit(&all, wish(10, usize::MAX, Some(1 << 40))).unwrap();
        assert_eq!((fit.batches.len(), fit.ahead), (10_000, 10_000));
    }

    proptest! {
        #[test]
        fn what_a_consumer_does_stays_within_the_peak_and_the_peak_within_the_room(
            sizes in prop::collection::vec((0..5000_u64, any::<bool>()), 0..60),
            max in 0..20_000_u64, ahead in 0..5_usize, room in prop::option::of(0..200_000_u64),
            even in any::<bool>(), unit in prop::sample::select(vec![1_u64, 64, 3000])
        ) {
            let all: Vec<Item> = sizes.iter().map(|&(bytes, kept)| Item { bytes, kept: kept && !even }).collect();
            let wish = Wish { max_batch_bytes: max, ahead, even, unit, room };
            let padded = |range: Range<usize>, kept: bool| {
                let of = all[range].iter().filter(|item| item.kept == kept && item.bytes > 0);
                of.fold(0_u64, |end, item| end.next_multiple_of(256) + item.bytes).next_multiple_of(unit)
            };
            match fit(&all, wish) {
                Ok(fit) => {
                    // B1, B2.
                    let in_order: Vec<usize> = fit.batches.iter().cloned().flatten().collect();
                    prop_assert_eq!(in_order, (0..all.len()).collect::<Vec<_>>());
                    prop_assert!(fit.max_batch_bytes <= max && fit.ahead <= ahead);
                    for batch in &fit.batches {
                        let bytes: u64 = all[batch.clone()].iter().map(|item| item.bytes).sum();
                        prop_assert!(batch.len() == 1 || (!batch.is_empty() && bytes <= fit.max_batch_bytes));
                    }
                    // B3, by playing it.
                    let longest = fit.batches.iter().map(|batch| padded(batch.clone(), false)).max().unwrap_or(0);
                    prop_assert_eq!(longest, fit.longest_bytes);
                    let mut most = 0;
                    for current in 0..fit.batches.len() {
                        let read = (current + fit.ahead + 1).min(fit.batches.len());
                        let kept: u64 = fit.batches[..read].iter().map(|batch| padded(batch.clone(), true)).sum();
                        let passing = |batch: &Range<usize>| if even { longest } else { padded(batch.clone(), false) };
                        most = most.max(kept + fit.batches[current..read].iter().map(passing).sum::<u64>());
                    }
                    prop_assert_eq!(most, fit.peak_bytes);
                    prop_assert!(room.is_none_or(|room| fit.peak_bytes <= room));
                }
                Err(short) => {
                    // One after the other is the least that there is.
                    let alone = |at: usize| {
                        let bytes = |item: &Item| item.bytes.next_multiple_of(unit);
                        let kept: u64 = all[..=at].iter().filter(|item| item.kept).map(bytes).sum();
                        let longest = all.iter().map(bytes).max().unwrap_or(0);
                        kept + if even { longest } else if all[at].kept { 0 } else { bytes(&all[at]) }
                    };
                    let least = (0..all.len()).map(alone).max().unwrap_or(0);
                    prop_assert_eq!(short.needed, least);
                    prop_assert_eq!(alone(short.tensor), least);
                    prop_assert!(room.is_some_and(|room| least > room));
                }
            }
        }
    }
}
