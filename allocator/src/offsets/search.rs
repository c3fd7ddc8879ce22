//! Which free block a request goes to: what a policy is.

use super::blocks::Blocks;
use super::request::Request;

/// How a space searches. Sealed: a policy lives in this module, where it is compared with an oracle, and what it says is believed.
pub trait Search: Copy + sealed::Sealed {
    /// The free block that a request goes to, and where in it the request starts; `None` only if no free block holds
    /// the request. The request has bytes, its alignment is a power of two, and some bin has a block.
    #[doc(hidden)]
    fn search(self, blocks: &Blocks, request: Request) -> Option<(u32, u64)>;
}

pub(super) mod sealed {
    /// Implemented by the policies of this module alone.
    pub trait Sealed {}
}
