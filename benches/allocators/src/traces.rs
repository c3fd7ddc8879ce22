//! What is placed and freed: a checkpoint's tensors, and random traces. All the same in each run.

use crate::contestants::GRANULE;

/// The shapes of the checkpoint.
#[path = "../../../cli/src/demo/shapes.rs"]
#[allow(dead_code, unused_imports, dropping_copy_types, reason = "shared with the command; it has tests")]
mod shapes;

/// Blocks that are all placed, then all freed.
pub(crate) struct Batch {
    pub(crate) sizes: Vec<u64>,
    /// What they need without a gap, each rounded to the granule.
    pub(crate) bytes: u64,
    /// Their places in an order that looks random.
    pub(crate) shuffled: Vec<usize>,
}

impl Batch {
    /// The 290 tensors of a Llama 3 8B whose head is tied to its embedding.
    pub(crate) fn llama_8b() -> Self {
        let shards = shapes::llama(16_000_000_000);
        let sizes = shards.iter().flat_map(|shard| &shard.tensors).map(shapes::Spec::bytes);
        let sizes: Vec<u64> = sizes.take(290).collect();
        assert_eq!(sizes.len(), 290);
        let bytes = sizes.iter().map(|size| size.next_multiple_of(GRANULE)).sum();
        let shuffled = shuffled(1, sizes.len());
        Self { sizes, bytes, shuffled }
    }

    /// Whether blocks of these sizes were all placed, aligned, and do not overlap.
    pub(crate) fn check_apart(&self, starts: &[u64]) -> Result<(), String> {
        if starts.len() != self.sizes.len() {
            return Err(format!("{} of {} were placed", starts.len(), self.sizes.len()));
        }
        check_apart(starts.iter().copied().zip(self.sizes.iter().copied()))
    }
}

/// Whether blocks, each a start and a size, are aligned and do not overlap.
pub(crate) fn check_apart(blocks: impl Iterator<Item = (u64, u64)>) -> Result<(), String> {
    let mut blocks: Vec<(u64, u64)> = blocks.collect();
    blocks.sort_unstable();
    if let Some((start, _)) = blocks.iter().find(|(start, _)| !start.is_multiple_of(GRANULE)) {
        return Err(format!("the block at {start} is not aligned"));
    }
    match blocks.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("blocks at {} and {} overlap", pair[0].0, pair[1].0)),
        None => Ok(()),
    }
}

/// What is done next: place so many bytes, or free the block at this place of the list of live ones.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    Place(u64),
    Free(usize),
}

/// Sizes are log-uniform from 256 B to so many doublings of that: to 64 MiB, as in `benches/churn.rs`.
pub(crate) const MIXED: f64 = 18.0;

/// To 16 KiB.
pub(crate) const SMALL: f64 = 6.0;

/// Blocks that come and go, as in `benches/churn.rs`: as many come as go around the number of live ones that is aimed at. A seed
/// gives the trace that it gives there, where the sizes are [`MIXED`].
pub(crate) struct Trace {
    pub(crate) operations: Vec<Operation>,
    /// The most bytes that are live, each block rounded to the granule.
    pub(crate) peak: u64,
}

impl Trace {
    pub(crate) fn new(seed: u64, operations: usize, aim: usize, doublings: f64) -> Self {
        let mut random = Random(seed);
        let (mut live, mut bytes, mut peak): (Vec<u64>, _, _) = (Vec::new(), 0, 0);
        let operations = (0..operations).map(|_| {
            if live.is_empty() || random.next() < 0.5 + (aim as f64 - live.len() as f64) / aim as f64 {
                let size = (256.0 * (random.next() * doublings).exp2()) as u64;
                live.push(size);
                bytes += size.next_multiple_of(GRANULE);
                peak = peak.max(bytes);
                Operation::Place(size)
            } else {
                let at = random.below(live.len());
                bytes -= live.swap_remove(at).next_multiple_of(GRANULE);
                Operation::Free(at)
            }
        });
        Self { operations: operations.collect(), peak }
    }

    /// A capacity as hundredths of the peak, in whole granules.
    pub(crate) fn of_peak(&self, hundredths: u64) -> u64 {
        (self.peak / 100 * hundredths).next_multiple_of(GRANULE)
    }
}

/// 0..count in an order that looks random.
pub(crate) fn shuffled(seed: u64, count: usize) -> Vec<usize> {
    let mut random = Random(seed);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.below(last + 1));
    }
    order
}

struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        ((self.next() * end as f64) as usize).min(end - 1)
    }
}
