//! [`agree`]: ranks go on together, or not at all.

use std::path::Path;

use tensorhold_allocator::Pool;

use super::memory::Place;
use super::{ProcessGroup, Ranks, refused};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::TensorInfo;

/// What a rank tells: that all is well, or not.
const WELL: u8 = 1;

/// This rank's outcome, if every rank has one. After a step that may fail on one rank alone, such as a load, all ranks call it: so none waits for one
/// that has given up. A byte is placed in the pool, which is over the device's memory.
///
/// ```
/// use tensorhold::group::{SingleGroup, agree};
/// use tensorhold::{Device, Pool};
///
/// let (device, pool) = (Device::host(), Pool::builder(Device::host().memory()).build()?);
/// assert_eq!(agree(&SingleGroup, &device, &pool, Ok(7))?, 7);
/// # Ok::<(), tensorhold::Error>(())
/// ```
///
/// # Errors
/// This rank's own, that another rank has one, or that the group fails.
pub fn agree<T>(group: &dyn ProcessGroup, device: &Device, pool: &Pool, outcome: Result<T>) -> Result<T> {
    let ranks = Ranks::of(group);
    if ranks.as_ref().is_ok_and(|ranks| ranks.size == 1) {
        return outcome;
    }
    let failed = ranks.and_then(|ranks| tell(group, ranks, device, pool, outcome.is_ok()));
    let outcome = outcome?;
    match failed? {
        None => Ok(outcome),
        Some(rank) => {
            let detail = format!("rank {rank} has failed, expected every rank to come so far");
            Err(refused(group, "go on together", detail, "see what that rank says"))
        }
    }
}

/// Tells all others how it went here, and returns the first rank where it did not go well.
fn tell(
    group: &dyn ProcessGroup,
    ranks: Ranks,
    device: &Device,
    pool: &Pool,
    is_well: bool,
) -> Result<Option<usize>> {
    let place = Place::new(group, ranks, device, pool)?;
    let info = || TensorInfo {
        name: "outcome".into(),
        dtype: DType::U8,
        shape: [1][..].into(),
        nbytes: 1,
        file: Path::new("").into(),
    };
    let mut first = None;
    for root in 0..ranks.size {
        let mut outcome = place.upload(info(), vec![if is_well { WELL } else { 0 }])?;
        if root == ranks.own {
            group.broadcast(&outcome)?;
        } else {
            group.recv_broadcast(&mut outcome, root)?;
        }
        if outcome.to_host()? != [WELL] {
            first = first.or(Some(root));
        }
    }
    Ok(first)
}
