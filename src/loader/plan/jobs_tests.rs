use proptest::prelude::*;
use tensorhold_allocator::offsets::lay_out;

use super::jobs::{Extent, Limits};
use super::planner::plan_jobs;
use crate::loader::transform::TensorTransforms;

/// Files of tensors, one after the other; some tensors are left out, as by a selection.
fn extents() -> impl Strategy<Value = Vec<Extent>> {
    let size = prop_oneof![1 => Just(0), 4 => 1..600_u64, 2 => 600..50_000_u64];
    let file = prop::collection::vec((size, prop::bool::weighted(0.8)), 0..40);
    prop::collection::vec(file, 1..4).prop_map(|files| {
        let mut extents = Vec::new();
        for (file, tensors) in files.into_iter().enumerate() {
            let mut start = 100;
            for (bytes, selected) in tensors {
                if selected {
                    extents.push(Extent { file, start, bytes });
                }
                start += bytes;
            }
        }
        extents
    })
}

proptest! {
    #[test]
    fn each_byte_of_each_tensor_is_planned_once_to_its_place(
        extents in extents(), max_span in 1..20_000_u64, group in 1..5_u64,
        cut in prop::option::of(1..20_000_u64), region_limit in prop::option::of(1000..60_000_u64)
    ) {
        let requests: Vec<_> = extents.iter().map(Extent::request).collect();
        let layout = lay_out(&requests, region_limit).unwrap();
        let limits = Limits { span: max_span, cut, group: max_span * group };
        let plan = plan_jobs(extents.iter().copied(), &layout, limits, &TensorTransforms::default());
        // Every planned run of bytes, as (file, offset in the file, region, offset in the region, length).
        let mut runs = Vec::new();
        for job in &plan.jobs {
            let mut at = job.file_offset;
            let mut end = 0;
            for piece in plan.pieces_of(job) {
                prop_assert!(piece.bytes > 0 && piece.offset >= end, "P2");
                end = piece.offset + piece.bytes;
                runs.push((job.file, at, job.region, job.offset + piece.offset, piece.bytes));
                at += piece.bytes;
            }
            prop_assert_eq!((end, at - job.file_offset), (job.span, job.file_bytes));
            let parts = extents[job.tensors.clone()].iter().map(|tensor| {
                (tensor.start + tensor.bytes).min(at).saturating_sub(tensor.start.max(job.file_offset))
            });
            prop_assert_eq!(parts.sum::<u64>(), job.file_bytes, "its tensors are those of its bytes");
            if let Some(cut) = cut {
                prop_assert_eq!(job.file_offset / cut, (at - 1) / cut, "P3");
            }
            prop_assert!(job.span <= max_span && job.offset + job.span <= layout.regions[job.region].size);
        }
        let mut grouped = 0;
        for jobs in &plan.groups {
            prop_assert_eq!(jobs.start, grouped);
            grouped = jobs.end;
            let (first, last) = (&plan.jobs[jobs.start], &plan.jobs[jobs.end - 1]);
            prop_assert!(first.region == last.region && last.offset + last.span - first.offset <= max_span * group);
            for job in &plan.jobs[jobs.clone()] {
                prop_assert_eq!((job.slot, job.staged), (job.offset - first.offset, job.span), "a slot is as the region");
            }
        }
        prop_assert_eq!(grouped, plan.jobs.len());
        let mut runs = runs.into_iter();
        let mut run = runs.next();
        for (extent, placement) in extents.iter().zip(&layout.placements) {
            let mut done = 0;
            while done < extent.bytes {
                let Some((file, at, region, offset, bytes)) = run.take() else { panic!("P1: bytes are missing") };
                prop_assert_eq!(
                    (file, at, region, offset),
                    (extent.file, extent.start + done, placement.region as usize, placement.offset + done)
                );
                let here = bytes.min(extent.bytes - done);
                done += here;
                run = if here < bytes { Some((file, at + here, region, offset + here, bytes - here)) } else { runs.next() };
            }
        }
        prop_assert_eq!(run, None, "P1: a byte is planned twice");
        prop_assert_eq!(plan.bytes, extents.iter().map(|extent| extent.bytes).sum::<u64>());
    }
}

#[test]
fn a_run_of_tensors_is_one_job_of_as_many_pieces_as_there_are_gaps() {
    let sizes = [256, 512, 100, 300, 256];
    let mut start = 8;
    let extents = sizes.map(|bytes| {
        start += bytes;
        Extent { file: 0, start: start - bytes, bytes }
    });
    let layout = lay_out(extents.map(|extent| extent.request()), None).unwrap();
    let limits = Limits { span: 1 << 20, cut: None, group: 1 << 20 };
    let plan = plan_jobs(extents.iter().copied(), &layout, limits, &TensorTransforms::default());
    // 256 + 512 + 100 touch; then 100 and 300 are padded.
    let pieces: Vec<_> = plan.pieces.iter().map(|piece| (piece.offset, piece.bytes)).collect();
    assert_eq!((plan.jobs.len(), pieces), (1, vec![(0, 868), (1024, 300), (1536, 256)]));
}

#[test]
fn a_job_has_no_more_pieces_than_a_read_has_buffers() {
    let extents: Vec<Extent> = (0..3000).map(|n| Extent { file: 0, start: n, bytes: 1 }).collect();
    let requests: Vec<_> = extents.iter().map(Extent::request).collect();
    let limits = Limits { span: u64::MAX, cut: None, group: u64::MAX };
    let layout = lay_out(&requests, None).unwrap();
    let plan = plan_jobs(extents.iter().copied(), &layout, limits, &TensorTransforms::default());
    assert_eq!(plan.jobs.iter().map(|job| job.pieces.len()).collect::<Vec<_>>(), [1024, 1024, 952]);
}
