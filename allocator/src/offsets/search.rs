//! [`Search`]: chooses the free block for a request.

use super::blocks::Blocks;
use super::request::Request;

/// A placement policy. Sealed: a space relies on the results, so every policy is in this module and tested against an oracle.
pub trait Search: Copy + sealed::Sealed {
    /// The free block for a request, and the offset at which the request starts in it; `None` only if no free block holds
    /// the request. The request is not empty, its alignment is a power of two, and some bin has a block.
    #[doc(hidden)]
    fn search(self, blocks: &Blocks, request: Request) -> Option<(u32, u64)>;
}

pub(super) mod sealed {
    /// Implemented by the policies of this module alone.
    pub trait Sealed {}
}
