//! A checkpoint's tensors, placed in order in an empty space and freed, in order or in a random one.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::median_of_times;
use crate::contestants::{Contestant, GRANULE};
use crate::traces::Batch;

/// The search for the smallest space ends at so many thousandths over the exact size.
const MOST_OVER: u64 = 3000;

/// Nanoseconds for the whole batch.
pub(crate) struct Nanoseconds {
    pub(crate) placed: f64,
    pub(crate) pair_in_order: f64,
    pub(crate) pair_shuffled: f64,
}

/// A capacity from thousandths over the exact size.
pub(crate) fn capacity(batch: &Batch, over: u64) -> u64 {
    batch.bytes + (batch.bytes / 1000 * over).next_multiple_of(GRANULE)
}

/// The smallest space in which the batch can be placed, in thousandths over its exact size.
pub(crate) fn smallest<C: Contestant>(batch: &Batch) -> Result<u64, String> {
    for over in 0..=MOST_OVER {
        let mut space = C::new(capacity(batch, over))?;
        let mut placed = Vec::with_capacity(batch.sizes.len());
        for &size in &batch.sizes {
            let Some(block) = space.allocate(size) else { break };
            placed.push(block);
        }
        let all = placed.len() == batch.sizes.len();
        placed.into_iter().for_each(|(_, live)| space.free(live));
        space.drain();
        if all {
            return Ok(over);
        }
    }
    Err(format!("cannot place all in {} times their size", 1 + MOST_OVER / 1000))
}

/// One round: placing alone, then pairs in both orders. What was placed is checked each time.
pub(crate) fn round<C: Contestant>(batch: &Batch, capacity: u64) -> Result<Nanoseconds, String> {
    let in_order: Vec<usize> = (0..batch.sizes.len()).collect();
    let mut space = C::new(capacity)?;
    let mut placed = Vec::with_capacity(batch.sizes.len());
    let mut times = |order: &[usize], pair: bool| {
        median_of_times(|| {
            let (placing, freeing) = once(&mut space, &mut placed, batch, order)?;
            Ok(if pair { placing + freeing } else { placing })
        })
    };
    Ok(Nanoseconds {
        placed: times(&in_order, false)?,
        pair_in_order: times(&in_order, true)?,
        pair_shuffled: times(&batch.shuffled, true)?,
    })
}

/// Places the batch and frees it in this order: how long either took.
fn once<C: Contestant>(
    space: &mut C,
    placed: &mut Vec<Option<(u64, C::Live)>>,
    batch: &Batch,
    order: &[usize],
) -> Result<(Duration, Duration), String> {
    placed.clear();
    let started = Instant::now();
    placed.extend(black_box(&batch.sizes).iter().map(|&size| space.allocate(size)));
    let placing = started.elapsed();
    let starts: Vec<u64> = placed.iter().flatten().map(|(start, _)| *start).collect();
    batch.check_apart(&starts)?;
    let started = Instant::now();
    for &index in order {
        if let Some((_, live)) = placed[index].take() {
            space.free(live);
        }
    }
    space.drain();
    let freeing = started.elapsed();
    if space.is_empty() { Ok((placing, freeing)) } else { Err("not empty at the end".into()) }
}
