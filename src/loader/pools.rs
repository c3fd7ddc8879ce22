//! Checks of pools that a caller passes to a load.

use tensorhold_allocator::{Memory, Pool};

use crate::device::check_same;
use crate::error::{Error, Remedy, Result};

/// The caller's pool, if there is one.
///
/// # Errors
/// When it is not over this memory, or belongs to the parent of a forked child.
pub(super) fn shared(option: &'static str, pool: Option<&Pool>, memory: &dyn Memory) -> Result<Option<Pool>> {
    match pool {
        Some(pool) if !pool.is_of_this_process() => Err(Error::Forked { operation: "load by way of a pool" }),
        Some(pool) => {
            let remedy = Remedy::POOL;
            check_pool(option, pool, memory, remedy).map(|()| Some(pool.clone()))
        }
        None => Ok(None),
    }
}

/// Checks that a pool is over this memory (M4).
///
/// # Errors
/// When it is over another memory, even one of the same name.
pub(super) fn check_pool(
    option: &'static str,
    pool: &Pool,
    memory: &dyn Memory,
    remedy: impl Into<Remedy>,
) -> Result<()> {
    check_same(&**pool.memory(), memory).map_err(|(got, expected)| Error::Option {
        option,
        got: format!("a pool over {got}"),
        expected: format!("one over {expected}"),
        remedy: remedy.into(),
    })
}
