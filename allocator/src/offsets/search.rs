//! Which free block a request goes to: what a policy is.

use super::Request;
use super::blocks::Blocks;

/// How a space searches. Sealed: a policy lives in this module, where it is compared with an oracle, and what it says is believed.
pub trait Search: Copy + sealed::Sealed {
    /// The free block that a request goes to, and where in it the request starts; `None` only if no free block holds
    /// the request. The request has bytes, its alignment is a power of two, and some bin has a block.
    #[doc(hidden)]
    fn search(self, blocks: &Blocks, request: Request) -> Option<(u32, u64)>;
}

mod sealed {
    use super::super::{ByBestFit, BySegregatedFit, Policy};

    /// What no one else can implement.
    pub trait Sealed {}

    impl Sealed for ByBestFit {}
    impl Sealed for BySegregatedFit {}
    impl Sealed for Policy {}
}
