//! Checks of a load against its memory budget.

use tensorhold_allocator::Pool;

use crate::error::{Error, Result};
use crate::tensor::TensorInfo;

/// An error names this many of the largest tensors.
const NAMED: usize = 3;

/// The sizes of planned regions are multiples of this number of bytes of the pool's memory.
pub(crate) fn unit(pool: &Pool) -> u64 {
    let parted = pool.is_parted().then(|| pool.memory().parted().ok()).flatten();
    parted.map_or(1, |memory| memory.unit())
}

/// Checks that `needed` bytes, which these tensors take, are within the budget.
///
/// # Errors
/// When they are not. The error names the largest tensors.
pub(crate) fn check<'a, I: Iterator<Item = &'a TensorInfo>>(
    needed: u64,
    budget: u64,
    tensors: impl FnOnce() -> I,
) -> Result<()> {
    if needed <= budget {
        return Ok(());
    }
    let mut count = 0;
    let largest = largest(tensors().inspect(|_| count += 1));
    Err(Error::OverBudget { needed, budget, tensors: count, largest })
}

/// The names and bytes of the largest tensors, largest first.
pub(crate) fn largest<'a>(tensors: impl Iterator<Item = &'a TensorInfo>) -> Vec<(String, u64)> {
    let mut largest: Vec<&TensorInfo> = Vec::with_capacity(NAMED + 1);
    for info in tensors {
        let place = largest.partition_point(|other| other.nbytes >= info.nbytes);
        largest.insert(place, info);
        largest.truncate(NAMED);
    }
    largest.into_iter().map(|info| (info.name.to_string(), info.nbytes)).collect()
}
