//! Exact best fit: of the free blocks that hold a request, the smallest; of equal ones, the lowest.

use super::bins::class_of;
use super::blocks::Blocks;
use super::request::Request;
use super::search::{Search, sealed::Sealed};

/// The policy of [`BestFit`](super::BestFit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByBestFit;

impl Sealed for ByBestFit {}

impl Search for ByBestFit {
    #[inline]
    fn search(self, blocks: &Blocks, request: Request) -> Option<(u32, u64)> {
        let mut best = None;
        let mut best_order = (u64::MAX, u64::MAX);
        let mut class = class_of(request.size);
        // Blocks of a later class are all larger, so the first class with a hit has the best that is in a bin.
        while best.is_none()
            && let Some(occupied) = blocks.occupied().next(class)
        {
            for (index, block) in blocks.in_bin(occupied) {
                let order = (block.size, block.offset);
                if order < best_order
                    && let Some(offset) = block.holds(request)
                {
                    (best, best_order) = (Some((index, offset)), order);
                }
            }
            class = occupied + 1;
        }
        let loose = blocks.node(blocks.loose());
        if (loose.size, loose.offset) < best_order
            && let Some(offset) = loose.holds(request)
        {
            best = Some((blocks.loose(), offset));
        }
        best
    }
}
