use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use tensorhold_allocator::offsets::lay_out;

use super::jobs::{Extent, Limits, Plan, StridedRead};
use super::planner::plan_jobs;
use super::strided_jobs::reading;
use crate::dtype::DType;
use crate::format::Place;
use crate::loader::transform::{Cut, CutReads, TensorTransforms, TransformSpec};
use crate::tensor::TensorInfo;

/// A tensor of that type and shape.
fn info(dtype: DType, shape: &[usize]) -> TensorInfo {
    let nbytes = shape.iter().product::<usize>() as u64 * u64::from(dtype.bits()) / 8;
    TensorInfo { name: "t".into(), dtype, shape: shape.into(), nbytes, file: Path::new("f").into() }
}

/// A spec for the tensor of [`info`].
fn spec(dtype: Option<DType>, cuts: impl IntoIterator<Item = Cut>) -> TransformSpec {
    let mut spec = TransformSpec { dtype, ..TransformSpec::default() };
    cuts.into_iter().for_each(|cut| spec.cuts.add("t".into(), cut));
    spec
}

/// A shape and a part of each of its dimensions.
fn cut_shape() -> impl Strategy<Value = (Vec<usize>, Vec<(usize, usize)>)> {
    let cut = |longest: usize| {
        (1..=longest).prop_flat_map(|there| {
            let part = (0..there).prop_flat_map(move |start| (Just(start), 1..=there - start));
            (Just(there), prop_oneof![1 => Just((0, there)), 2 => part])
        })
    };
    let few = prop::collection::vec(cut(60), 1..3);
    let dims = prop_oneof![few, prop::collection::vec(cut(14), 3), prop::collection::vec(cut(5), 4..6)];
    dims.prop_map(|dims| dims.into_iter().unzip())
}

/// From the place of each element's first byte in the file, counted from the tensor's start on, to that in
/// the target.
fn oracle(shape: &[usize], parts: &[(usize, usize)], (unit, target_unit): (u64, u64)) -> BTreeMap<u64, u64> {
    let count: usize = parts.iter().map(|(_, length)| length).product();
    (0..count)
        .map(|n| {
            let (mut rest, mut element, mut stride) = (n, 0, 1);
            for (&there, &(start, length)) in shape.iter().zip(parts).rev() {
                element += (start + rest % length) * stride;
                rest /= length;
                stride *= there;
            }
            (element as u64 * unit, n as u64 * target_unit)
        })
        .collect()
}

proptest! {
    #[test]
    fn each_element_of_a_transformed_tensor_is_planned_once_to_its_place(
        (shape, parts) in cut_shape(), to in prop_oneof![Just(None), Just(Some(DType::BF16)), Just(Some(DType::F32))],
        from in prop_oneof![Just(DType::F32), Just(DType::F64), Just(DType::F16)], span in 64..3000_u64,
        cut in prop::option::of(64..3000_u64), group in 1..5_u64, start in 0..600_u64, on_device: bool,
        cut_reads in prop_oneof![Just(CutReads::Auto), Just(CutReads::Parts), Just(CutReads::Rows)],
    ) {
        let to = to.filter(|&to| to != from);
        let info = info(from, &shape);
        let cuts = parts.iter().enumerate().map(|(dim, &(start, length))| Cut::narrow(dim, start, length));
        let resolved = spec(to, cuts).resolve(&info, Place { start, bytes: info.nbytes }).unwrap().unwrap();
        prop_assert_eq!(&*resolved.info.shape, parts.iter().map(|(_, length)| *length).collect::<Vec<_>>());
        let (unit, target_unit) = (u64::from(from.bits() / 8), u64::from(to.unwrap_or(from).bits() / 8));
        let extent = Extent { file: 0, start: resolved.place.start, bytes: resolved.place.bytes };
        let transforms = TensorTransforms {
            tensors: resolved.transform.into_iter().map(|transform| (0, transform)).collect(),
            on_device,
            cut_reads,
            ..TensorTransforms::default()
        };
        let layout = lay_out([extent.request()], None).unwrap();
        let cut = cut.map(|cut| cut.min(span));
        let limits = Limits { span, cut, group: span * group };
        let plan = plan_jobs([extent], &layout, limits, &transforms);

        // The target of each unit of the file: of the transform's units, or of bytes without a transform.
        let mut planned = BTreeMap::new();
        for job in &plan.jobs {
            prop_assert!(job.file_bytes <= span.max(unit) && job.span <= span.max(target_unit), "P5: {:?}", job);
            prop_assert!(job.offset + job.span <= layout.regions[0].size);
            let mut enter = |from: u64, to: u64| {
                prop_assert!(planned.insert(job.file_offset + from - start, job.offset + to).is_none(), "P4");
                Ok(())
            };
            let Some(part) = plan.transform_of(job) else {
                (0..job.file_bytes).try_for_each(|byte| enter(byte, byte))?;
                continue;
            };
            let (unit, target_unit) = if to.is_some() { (unit, target_unit) } else { (1, 1) };
            let block = part.block;
            prop_assert_eq!(part.run_bytes, block.elements().unwrap() * unit);
            prop_assert_eq!(job.span, block.elements().unwrap() * target_unit);
            let [a, b, c] = block.counts;
            for (i, j, k, n) in indices(a, b, c, block.run) {
                let at = |strides: [u64; 3]| i * strides[0] + j * strides[1] + k * strides[2] + n;
                let (from, into) = (at(block.source_strides) * unit, at(block.target_strides) * target_unit);
                prop_assert!(from + unit <= job.file_bytes && into + target_unit <= job.span, "{:?}", job);
                enter(from, into)?;
            }
        }
        let mut expected = oracle(&shape, &parts, (unit, target_unit));
        if to.is_none() {
            let bytes = |(from, to): (u64, u64)| (0..unit).map(move |byte| (from + byte, to + byte));
            expected = expected.into_iter().flat_map(bytes).collect();
        }
        prop_assert_eq!(planned, expected);

        let mut grouped = 0;
        for jobs in &plan.groups {
            prop_assert_eq!(jobs.start, grouped);
            grouped = jobs.end;
            let mut end = 0;
            for job in &plan.jobs[jobs.clone()] {
                prop_assert!(job.slot >= end, "places in a slot overlap");
                if let Some(part) = plan.transform_of(job).filter(|part| part.on_device) {
                    let (unit, target_unit) = if to.is_some() { (unit, target_unit) } else { (1, 1) };
                    prop_assert_eq!(job.slot / unit % 16, job.offset / target_unit % 16, "words do not match: {:?}", part);
                }
                end = job.slot + job.staged;
            }
            prop_assert!(jobs.len() == 1 || end <= span * group);
        }
        prop_assert_eq!((grouped, plan.bytes), (plan.jobs.len(), extent.bytes));
    }
}

fn indices(a: u64, b: u64, c: u64, run: u64) -> impl Iterator<Item = (u64, u64, u64, u64)> {
    (0..a).flat_map(move |i| {
        (0..b).flat_map(move |j| (0..c).flat_map(move |k| (0..run).map(move |n| (i, j, k, n))))
    })
}

/// The plan of a tensor alone in a file of long spans.
fn plan_of(shape: &[usize], dtype: Option<DType>, cuts: &[Cut], on_device: bool) -> (Plan, TensorTransforms) {
    let info = info(DType::BF16, shape);
    let resolved = spec(dtype, cuts.iter().copied()).resolve(&info, Place { start: 8, bytes: info.nbytes });
    let resolved = resolved.unwrap().unwrap();
    let tensors = resolved.transform.into_iter().map(|transform| (0, transform)).collect();
    let transforms = TensorTransforms { tensors, on_device, ..TensorTransforms::default() };
    let extent = Extent { file: 0, start: resolved.place.start, bytes: resolved.place.bytes };
    let limits = Limits { span: 1 << 20, cut: Some(1 << 20), group: 8 << 20 };
    let layout = lay_out([extent.request()], None).unwrap();
    (plan_jobs([extent], &layout, limits, &transforms), transforms)
}

#[test]
fn a_shard_of_rows_is_read_as_any_tensor() {
    let (plan, transforms) = plan_of(&[4096, 4096], None, &[Cut::shard(0, 3, 8)], true);
    assert!(transforms.tensors.is_empty() && plan.transforms.is_empty());
    // The shard starts 12 MiB and 8 bytes into the file.
    assert_eq!((plan.bytes, plan.jobs[0].file_offset, plan.groups.len()), (4 << 20, (12 << 20) + 8, 1));
}

#[test]
fn columns_are_read_one_by_one_where_much_lies_between_them() {
    // 1 KiB of each row of 8 KiB: 128 rows to a mebibyte.
    let (plan, transforms) = plan_of(&[4096, 4096], None, &[Cut::shard(1, 1, 8)], true);
    assert_eq!(reading(&transforms.tensors[0].1, CutReads::Auto), StridedRead::Runs);
    assert_eq!(
        (plan.jobs.len(), plan.jobs[0].file_bytes, plan.jobs[0].span),
        (32, (127 << 13) + 1024, 128 << 10)
    );
    // Nothing is left to transform, and one copy moves all of them.
    assert!(
        plan.jobs.iter().all(|job| !plan.launches(job) && job.slot == job.offset) && plan.groups.len() == 1
    );
}

#[test]
fn columns_come_with_their_rows_where_little_lies_between_them() {
    let (plan, transforms) = plan_of(&[40_000, 64], None, &[Cut::shard(1, 1, 4)], true);
    assert_eq!(reading(&transforms.tensors[0].1, CutReads::Auto), StridedRead::Span);
    assert!(plan.jobs.iter().all(|job| plan.launches(job) && job.staged == job.file_bytes));
    let (plan, _) = plan_of(&[40_000, 64], None, &[Cut::shard(1, 1, 4)], false);
    assert!(plan.jobs.iter().all(|job| !plan.launches(job) && job.staged == job.span));
}

#[test]
fn long_columns_are_read_as_any_tensor() {
    let (plan, _) = plan_of(&[16, 1 << 20], None, &[Cut::shard(1, 1, 2)], true);
    assert!(plan.transforms.is_empty());
    assert_eq!(plan.jobs.len(), 32, "a mebibyte is in two jobs, since it does not begin at a multiple");
}

#[test]
fn a_conversion_of_a_tensor_is_few_launches() {
    let (plan, _) = plan_of(&[1 << 20, 8], Some(DType::F32), &[], true);
    // 16 MiB; the span of each job in the region is a mebibyte.
    assert_eq!((plan.jobs.len(), plan.groups.len()), (33, 3));
    for jobs in &plan.groups {
        let mut pairs = plan.jobs[jobs.clone()].windows(2);
        assert!(pairs.all(|pair| plan.continues(&pair[0], &pair[1])));
    }
}
