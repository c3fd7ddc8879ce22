//! Dividing the tensors of a load into jobs.

use tensorhold_allocator::offsets::Layout;

use super::jobs::{Extent, Limits, Plan};
use super::strided_jobs::StridedPlanner;
use crate::io::MAX_BUFFERS;
use crate::loader::transform::TensorTransforms;

/// Divides the tensors into jobs and groups. `layout` has a placement for each of `extents`, in the same
/// order.
pub(super) fn plan_jobs(
    extents: impl IntoIterator<Item = Extent>,
    layout: &Layout,
    limits: Limits,
    transforms: &TensorTransforms,
) -> Plan {
    let bytes: u64 = layout.placements.iter().map(|placement| placement.bytes).sum();
    let tensors = layout.placements.len();
    // Each span but the last of a file is full, or ends because a read takes no more buffers.
    let full = limits.cut.unwrap_or(u64::MAX).min(limits.span);
    let jobs = bytes / full + (tensors / MAX_BUFFERS) as u64 + 8;
    let mut plan = Plan {
        jobs: Vec::with_capacity(jobs as usize),
        // At most one for each job and tensor.
        pieces: Vec::with_capacity(jobs as usize + tensors),
        ..Plan::default()
    };
    let mut transformed = transforms.tensors.iter().enumerate().peekable();
    for (tensor, (extent, placement)) in extents.into_iter().zip(&layout.placements).enumerate() {
        let region = placement.region as usize;
        if let Some((number, _)) = transformed.next_if(|(_, (transformed, _))| *transformed == tensor) {
            StridedPlanner::plan(&mut plan, limits, transforms, number, extent, (region, placement.offset));
            continue;
        }
        let mut done = 0;
        while done < extent.bytes {
            done += plan.add(tensor, extent, region, placement.offset, done, limits);
        }
    }
    plan.group(limits.group);
    plan
}
