//! Two-level segregated fit: the first block of the first size class whose blocks are all large enough.
//!
//! This is TLSF (see [`bins`](super::bins)) with two differences: it first tries the first block of the request's own
//! class, so that a block just freed serves a request of its size; and where TLSF fails, it falls back to best fit.

use super::best_fit::ByBestFit;
use super::bins::class_of;
use super::blocks::Blocks;
use super::request::Request;
use super::search::{Search, sealed::Sealed};

/// The policy of [`Segregated`](super::Segregated).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BySegregatedFit;

impl Sealed for BySegregatedFit {}

impl Search for BySegregatedFit {
    #[inline]
    fn search(self, blocks: &Blocks, request: Request) -> Option<(u32, u64)> {
        let own = class_of(request.size);
        // Every block from this class on is large enough.
        let sure = class_of(request.size - 1) + 1;
        let first = |class: usize| {
            let (index, block) = blocks.in_bin(class).next()?;
            Some((index, block.holds(request)?))
        };
        let loose = blocks.node(blocks.loose());
        let loose_hit = |last: usize| {
            let offset = loose.holds(request).filter(|_| class_of(loose.size) <= last)?;
            Some((blocks.loose(), offset))
        };
        if let Some(hit) = first(own).or_else(|| loose_hit(own)) {
            return Some(hit);
        }
        let hit = match blocks.occupied().next(sure) {
            Some(class) => loose_hit(class).or_else(|| first(class)),
            None => loose_hit(usize::MAX),
        };
        hit.or_else(|| ByBestFit.search(blocks, request))
    }
}
