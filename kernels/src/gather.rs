//! Copies of blocks and of bytes, for the CPU.

use crate::block::Block;
use crate::error::{Error, Result};

/// Copies a block of `source` into `target`, both of elements of `element_bytes`, and leaves the rest of `target` as it is.
///
/// # Errors
/// [`Error::Length`] when either slice is no whole number of elements, [`Error::Block`] when the block reaches beyond one of them.
pub fn gather(element_bytes: usize, block: &Block, source: &[u8], target: &mut [u8]) -> Result<()> {
    block.each_run("gather", (source, element_bytes), (target, element_bytes), |source, target| {
        target.copy_from_slice(source);
    })
}

/// Copies all of `source` into all of `target`, whatever their alignments.
///
/// # Errors
/// [`Error::Length`] when they differ in length.
pub fn repack(source: &[u8], target: &mut [u8]) -> Result<()> {
    if source.len() != target.len() {
        return Err(Error::Length {
            operation: "repack",
            what: "target",
            got: target.len() as u64,
            expected: format!("the source's {}", source.len()),
        });
    }
    target.copy_from_slice(source);
    Ok(())
}
