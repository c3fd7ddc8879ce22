//! The schedule of a load in batches: the size of batches and the number that are read ahead, within the
//! available memory.
//!
//! While the consumer works on one batch, the next ones are read *ahead*. The consumer may keep tensors of a
//! batch, whose memory accumulates. The memory of the others is freed when the consumer takes the next batch.
//! The peak is therefore the memory of all tensors kept up to the last batch that is being read, plus that of
//! the other tensors of the batches from the consumer's to that one.
//!
//! # Invariants
//! - **B1** Each tensor is in exactly one batch; batches and the tensors in them are in the order of the
//!   file.
//! - **B2** A batch of several tensors has at most the requested number of bytes of tensors.
//! - **B3** At any time, kept tensors and batches in flight take at most the peak, which is within the
//!   available memory.

use super::jobs::TENSOR_ALIGN;
use std::ops::Range;

/// A tensor to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchItem {
    pub(crate) bytes: u64,
    /// The consumer keeps this tensor.
    pub(crate) kept: bool,
}

/// What a caller requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRequest {
    /// The most bytes of a batch of several tensors.
    pub(crate) max_batch_bytes: u64,
    /// The most batches that are read ahead.
    pub(crate) ahead: usize,
    /// All regions have the length of the longest.
    pub(crate) even: bool,
    /// The sizes of regions are multiples of this number of bytes; more than 0.
    pub(crate) unit: u64,
    /// Available memory in bytes; `None` if there is no limit.
    pub(crate) room: Option<u64>,
}

/// Batches that fit into the available memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchSchedule {
    /// The tensors of each batch.
    pub(crate) batches: Vec<Range<usize>>,
    pub(crate) max_batch_bytes: u64,
    pub(crate) ahead: usize,
    /// The most memory that is taken at any time, in bytes.
    pub(crate) peak_bytes: u64,
    /// The longest region of tensors that are not kept, in bytes.
    pub(crate) longest_bytes: u64,
}

/// Why no schedule fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Infeasible {
    /// The least memory that is sufficient, in bytes.
    pub(crate) needed: u64,
    /// The tensor at which it is needed.
    pub(crate) tensor: usize,
    /// Bytes of tensors kept before that one.
    pub(crate) kept: u64,
}

/// Batches shorter than this take longer to start and finish than to read. Before batches become as short,
/// fewer are read ahead.
const LEAST_AHEAD_BYTES: u64 = 16 << 20;

/// Batches shorter than this are no better than single tensors.
const LEAST_BYTES: u64 = 1 << 20;

/// Regions of a batch, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Regions {
    kept: u64,
    passing: u64,
}

impl Regions {
    fn add(&mut self, item: BatchItem) {
        let region = if item.kept { &mut self.kept } else { &mut self.passing };
        if item.bytes > 0 {
            let start = region.checked_next_multiple_of(TENSOR_ALIGN).unwrap_or(u64::MAX);
            *region = start.saturating_add(item.bytes);
        }
    }

    /// The sizes rounded up to units of the memory.
    fn whole(&self, unit: u64) -> Self {
        let whole = |bytes: u64| bytes.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
        Self { kept: whole(self.kept), passing: whole(self.passing) }
    }
}

/// Tensors divided into batches of at most this many bytes.
struct BatchSplit {
    max_batch_bytes: u64,
    batches: Vec<Range<usize>>,
    regions: Vec<Regions>,
}

impl BatchSplit {
    fn new(items: &[BatchItem], max_batch_bytes: u64, unit: u64) -> Self {
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

    /// The peak of memory with `ahead` batches read ahead, and the last batch that is being read at that
    /// time.
    fn peak(&self, ahead: usize, even: bool) -> (u64, usize) {
        let longest = self.longest();
        let passing = |regions: &Regions| if even { longest } else { regions.passing };
        let (mut peak, mut kept, mut in_flight) = ((0, 0), 0_u64, 0_u64);
        for (last, regions) in self.regions.iter().enumerate() {
            kept = kept.saturating_add(regions.kept);
            in_flight = in_flight.saturating_add(passing(regions));
            // The consumer has returned the batches before its current one.
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

    fn into_schedule(self, ahead: usize, even: bool) -> BatchSchedule {
        let (peak_bytes, longest_bytes) = (self.peak(ahead, even).0, self.longest());
        let Self { max_batch_bytes, batches, .. } = self;
        BatchSchedule { batches, max_batch_bytes, ahead, peak_bytes, longest_bytes }
    }
}

/// Schedules batches of the requested size and number ahead if they fit; else the longest of which at least
/// one can be read ahead; else the longest that fit one at a time.
///
/// # Errors
/// When not even single tensors fit, one at a time.
pub(crate) fn schedule(items: &[BatchItem], request: BatchRequest) -> Result<BatchSchedule, Infeasible> {
    let BatchRequest { max_batch_bytes, ahead, even, unit, room } = request;
    let room = room.unwrap_or(u64::MAX);
    let halves = |least: u64| {
        let shorter = move |bytes: &u64| Some(bytes / 2).filter(|half| *half >= least);
        std::iter::successors(Some(max_batch_bytes), shorter)
    };
    if ahead > 0 {
        for bytes in halves(LEAST_AHEAD_BYTES) {
            let split = BatchSplit::new(items, bytes, unit);
            // Reading more ahead never takes less memory. More batches than exist are the same as all.
            let (mut most, mut too_many) = (0, ahead.min(split.batches.len()).max(1) + 1);
            while too_many - most > 1 {
                let some = usize::midpoint(most, too_many);
                let fits = split.peak(some, even).0 <= room;
                *(if fits { &mut most } else { &mut too_many }) = some;
            }
            if most > 0 {
                return Ok(split.into_schedule(most, even));
            }
        }
    }
    for bytes in halves(LEAST_BYTES).chain([0]) {
        let split = BatchSplit::new(items, bytes, unit);
        if split.peak(0, even).0 <= room {
            return Ok(split.into_schedule(0, even));
        }
    }
    let alone = BatchSplit::new(items, 0, unit);
    let (needed, batch) = alone.peak(0, even);
    let kept = alone.regions.iter().take(batch).map(|regions| regions.kept).sum();
    Err(Infeasible { needed, tensor: alone.batches.get(batch).map_or(0, |batch| batch.end - 1), kept })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn items(sizes: &[u64]) -> Vec<BatchItem> {
        sizes.iter().map(|&bytes| BatchItem { bytes, kept: false }).collect()
    }

    fn request(max_batch_bytes: u64, ahead: usize, room: Option<u64>) -> BatchRequest {
        BatchRequest { max_batch_bytes, ahead, even: false, unit: 1, room }
    }

    #[test]
    fn batches_end_before_the_tensor_that_would_make_them_too_long() {
        let schedule = schedule(&items(&[40, 60, 0, 1, 300, 99, 0]), request(100, 2, None)).unwrap();
        assert_eq!(schedule.batches, [0..3, 3..4, 4..5, 5..7]);
        assert_eq!((schedule.ahead, schedule.max_batch_bytes), (2, 100));
        assert!(super::schedule(&[], request(100, 2, None)).unwrap().batches.is_empty());
    }

    #[test]
    fn without_room_batches_become_shorter_before_nothing_is_read_ahead_and_shorter_still_after_that() {
        let all = items(&[MIB; 256]);
        let with = |room: u64| {
            let schedule = schedule(&all, request(128 * MIB, 3, Some(room * MIB))).unwrap();
            (schedule.max_batch_bytes / MIB, schedule.ahead, schedule.peak_bytes / MIB)
        };
        assert_eq!(with(512), (128, 2, 256));
        assert_eq!(with(255), (64, 2, 192));
        assert_eq!(with(32), (16, 1, 32));
        assert_eq!(with(31), (16, 0, 16));
        assert_eq!(with(1), (1, 0, 1));
        let infeasible = schedule(&all, request(128 * MIB, 3, Some(MIB - 1))).unwrap_err();
        assert_eq!(infeasible, Infeasible { needed: MIB, tensor: 0, kept: 0 });
    }

    #[test]
    fn what_is_kept_adds_up_and_the_rest_does_not() {
        let mut all = items(&[10 * MIB; 8]);
        all[1].kept = true;
        all[6].kept = true;
        let room = |room| schedule(&all, request(10 * MIB, 0, Some(room * MIB)));
        assert_eq!(room(30).unwrap().peak_bytes, 30 * MIB);
        assert_eq!(room(29).unwrap_err(), Infeasible { needed: 30 * MIB, tensor: 7, kept: 20 * MIB });
        let all: Vec<BatchItem> = all.iter().map(|item| BatchItem { kept: true, ..*item }).collect();
        assert_eq!(schedule(&all, request(20 * MIB, 9, Some(80 * MIB))).unwrap().peak_bytes, 80 * MIB);
        let infeasible = schedule(&all, request(20 * MIB, 9, Some(80 * MIB - 1))).unwrap_err();
        assert_eq!(infeasible, Infeasible { needed: 80 * MIB, tensor: 7, kept: 70 * MIB });
    }

    #[test]
    fn even_regions_count_as_the_longest() {
        let all = items(&[MIB, 5 * MIB, MIB, MIB]);
        let even = BatchRequest { even: true, ..request(MIB, 1, None) };
        let schedule = schedule(&all, even).unwrap();
        assert_eq!((schedule.peak_bytes, schedule.longest_bytes), (10 * MIB, 5 * MIB));
    }

    #[test]
    fn as_many_batches_ahead_as_there_are_numbers_take_no_time() {
        let all = items(&[1; 100_000]);
        let schedule = schedule(&all, request(10, usize::MAX, Some(1 << 40))).unwrap();
        assert_eq!((schedule.batches.len(), schedule.ahead), (10_000, 10_000));
    }

    proptest! {
        #[test]
        fn what_a_consumer_does_stays_within_the_peak_and_the_peak_within_the_room(
            sizes in prop::collection::vec((0..5000_u64, any::<bool>()), 0..60),
            max in 0..20_000_u64, ahead in 0..5_usize, room in prop::option::of(0..200_000_u64),
            even in any::<bool>(), unit in prop::sample::select(vec![1_u64, 64, 3000])
        ) {
            let all: Vec<BatchItem> = sizes.iter().map(|&(bytes, kept)| BatchItem { bytes, kept: kept && !even }).collect();
            let request = BatchRequest { max_batch_bytes: max, ahead, even, unit, room };
            let padded = |range: Range<usize>, kept: bool| {
                let of = all[range].iter().filter(|item| item.kept == kept && item.bytes > 0);
                of.fold(0_u64, |end, item| end.next_multiple_of(256) + item.bytes).next_multiple_of(unit)
            };
            match schedule(&all, request) {
                Ok(schedule) => {
                    // B1, B2.
                    let in_order: Vec<usize> = schedule.batches.iter().cloned().flatten().collect();
                    prop_assert_eq!(in_order, (0..all.len()).collect::<Vec<_>>());
                    prop_assert!(schedule.max_batch_bytes <= max && schedule.ahead <= ahead);
                    for batch in &schedule.batches {
                        let bytes: u64 = all[batch.clone()].iter().map(|item| item.bytes).sum();
                        prop_assert!(batch.len() == 1 || (!batch.is_empty() && bytes <= schedule.max_batch_bytes));
                    }
                    // B3, by playing it.
                    let longest = schedule.batches.iter().map(|batch| padded(batch.clone(), false)).max().unwrap_or(0);
                    prop_assert_eq!(longest, schedule.longest_bytes);
                    let mut most = 0;
                    for current in 0..schedule.batches.len() {
                        let read = (current + schedule.ahead + 1).min(schedule.batches.len());
                        let kept: u64 = schedule.batches[..read].iter().map(|batch| padded(batch.clone(), true)).sum();
                        let passing = |batch: &Range<usize>| if even { longest } else { padded(batch.clone(), false) };
                        most = most.max(kept + schedule.batches[current..read].iter().map(passing).sum::<u64>());
                    }
                    prop_assert_eq!(most, schedule.peak_bytes);
                    prop_assert!(room.is_none_or(|room| schedule.peak_bytes <= room));
                }
                Err(infeasible) => {
                    // One after the other is the least that there is.
                    let alone = |at: usize| {
                        let bytes = |item: &BatchItem| item.bytes.next_multiple_of(unit);
                        let kept: u64 = all[..=at].iter().filter(|item| item.kept).map(bytes).sum();
                        let longest = all.iter().map(bytes).max().unwrap_or(0);
                        kept + if even { longest } else if all[at].kept { 0 } else { bytes(&all[at]) }
                    };
                    let least = (0..all.len()).map(alone).max().unwrap_or(0);
                    prop_assert_eq!(infeasible.needed, least);
                    prop_assert_eq!(alone(infeasible.tensor), least);
                    prop_assert!(room.is_some_and(|room| least > room));
                }
            }
        }
    }
}
