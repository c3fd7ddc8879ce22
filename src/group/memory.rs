//! Memory for tensors that come from other ranks, and copies of parts.

use std::ops::Range;
use std::sync::Arc;

use tensorhold_allocator::{Pool, Quoted, Request};
use tensorhold_kernels::Block;

use super::{ProcessGroup, Ranks, refused};
use crate::device::{Device, Transform, check_same, difference};
use crate::error::{Error, Remedy, Result};
use crate::shape::{Shape, elements};
use crate::tensor::{Description, Tensor, TensorInfo, TensorView};

/// Every tensor starts at a multiple of so many bytes.
const ALIGNMENT: u64 = 256;

/// Where tensors that are received are placed.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) device: Arc<Device>,
    pub(super) pool: Pool,
    pub(super) ranks: Ranks,
}

/// A part of a tensor, as runs of bytes: one for each index of the dimensions before the one that is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// As a tensor of its own.
    pub(super) info: TensorInfo,
    pub(super) runs: u64,
    /// Where the first run begins.
    pub(super) start: u64,
    /// The length of a run.
    pub(super) bytes: u64,
    /// From one run to the next in the whole tensor.
    pub(super) stride: u64,
}

impl Part {
    /// The indexes `range` of dimension `dim`.
    ///
    /// # Errors
    /// When there is no such dimension or range, or the part begins or ends within a byte.
    pub(super) fn new(whole: &TensorInfo, dim: usize, range: Range<usize>) -> Result<Self> {
        let wrong = |got: String, expected: String, remedy| {
            let name = whole.name.to_string();
            Err(Error::Tensor { operation: "cut", name, got, expected, remedy })
        };
        let Some(&extent) = whole.shape.get(dim) else {
            let expected = format!("one of its {} dimensions", whole.shape.len());
            return wrong(format!("dimension {dim}"), expected, "count dimensions from 0".into());
        };
        if range.start > range.end || range.end > extent {
            let got = format!("{range:?} in dimension {dim}");
            return wrong(
                got,
                format!("a range within 0..{extent}"),
                "check the range against the shape".into(),
            );
        }
        let (outer, inner) = (&whole.shape[..dim], &whole.shape[dim + 1..]);
        whole.check("cut")?;
        // Fit, since the whole tensor's size in bits was checked; where it has no elements, products of some of its dimensions may not.
        let (runs, bits) = match (whole.nbytes, elements(outer), elements(inner)) {
            (1.., Some(outer), Some(inner)) => (outer, inner * u64::from(whole.dtype.bits())),
            _ => (0, 0),
        };
        let (start, length) = (range.start as u64 * bits, range.len() as u64 * bits);
        let stride = extent as u64 * bits;
        if ![start, length].iter().all(|bits| bits.is_multiple_of(8))
            || (runs > 1 && !stride.is_multiple_of(8))
        {
            let got = format!("bits {start}..{} of rows of {stride} bits", start + length);
            return wrong(
                got,
                "whole bytes".into(),
                "begin and end parts at elements that begin a byte".into(),
            );
        }
        let mut shape = Shape::from(&whole.shape[..]);
        shape[dim] = range.len();
        let (start, bytes, stride) = (start / 8, length / 8, stride / 8);
        let info = TensorInfo { shape, nbytes: runs * bytes, ..whole.clone() };
        Ok(Self { info, runs, start, bytes, stride })
    }

    /// Whether it is all of the tensor.
    pub(super) fn is_whole(&self) -> bool {
        self.runs <= 1 && self.start == 0 && self.bytes == self.stride
            || self.info.nbytes == 0 && self.stride == 0
    }
}

impl Place {
    /// In that pool.
    ///
    /// # Errors
    /// When it is not over the device's memory.
    pub(super) fn new(group: &dyn ProcessGroup, ranks: Ranks, device: &Device, pool: &Pool) -> Result<Self> {
        check_same(&**pool.memory(), &*device.memory()).map_err(|(got, expected)| {
            let detail = format!("got a pool over {got}, expected one over {expected}");
            refused(group, "place tensors", detail, Remedy::TENSOR_POOL)
        })?;
        Ok(Self { device: Arc::new(device.clone()), pool: pool.clone(), ranks })
    }

    /// This rank.
    pub(super) fn own(&self) -> usize {
        self.ranks.own
    }

    /// Checks that a tensor is in the device's memory: copies are made there.
    ///
    /// # Errors
    /// When it is in another's.
    pub(super) fn check(
        &self,
        tensor: TensorView<'_>,
        operation: &'static str,
        group: &dyn ProcessGroup,
    ) -> Result<()> {
        if self.holds(tensor) {
            return Ok(());
        }
        let (there, here) = difference(&*tensor.device().memory(), &*self.device.memory());
        let detail = format!("got {} in {there}, expected tensors in {here}", Quoted(tensor.name()));
        Err(refused(group, operation, detail, "load each rank's tensors to the device that is given"))
    }

    /// Whether a tensor is in the device's memory.
    fn holds(&self, tensor: TensorView<'_>) -> bool {
        tensor.device().memory_id() == self.device.memory_id()
    }

    /// A tensor whose bytes are not set yet.
    ///
    /// # Errors
    /// When the pool has no room for it, or in a forked child of the process that made the pool.
    pub(super) fn blank(&self, info: TensorInfo) -> Result<Tensor> {
        info.check("receive")?;
        let bytes = self.pool.place(Arc::clone(&info.name), Request::new(info.nbytes, ALIGNMENT))?;
        Tensor::new(bytes, Arc::new(Description { info, device: Arc::clone(&self.device) }))
    }

    /// A tensor that a group receives.
    ///
    /// # Errors
    /// When there is no memory for it, the group fails, or puts another tensor in its place.
    pub(super) fn receive(
        &self,
        group: &dyn ProcessGroup,
        info: TensorInfo,
        receive: impl FnOnce(&mut Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let mut tensor = self.blank(info)?;
        let description = Arc::clone(tensor.description());
        receive(&mut tensor)?;
        if Arc::ptr_eq(tensor.description(), &description) {
            return Ok(tensor);
        }
        let (got, expected) = (tensor.view(), description.info.spelled());
        let detail = format!(
            "got {got:?} in the place of the tensor that was to be filled, {}: {expected}",
            Quoted(&description.info.name)
        );
        Err(refused(group, "receive a tensor", detail, "receive into the tensors that are given"))
    }

    /// A copy of a part of a tensor.
    pub(super) fn copy(&self, whole: TensorView<'_>, part: &Part) -> Result<Tensor> {
        let mut copy = self.blank(part.info.clone())?;
        self.copy_into(whole, part.start, part.stride, &mut copy, 0, part.bytes, part.runs, part.bytes)?;
        Ok(copy)
    }

    /// Tensors side by side along a dimension: part `n` of `joined`, whose info is given, is `tensors[n]`.
    pub(super) fn join(&self, joined: TensorInfo, parts: &[(Part, Tensor)]) -> Result<Tensor> {
        let mut whole = self.blank(joined)?;
        for (part, tensor) in parts {
            self.copy_into(
                tensor.view(),
                0,
                part.bytes,
                &mut whole,
                part.start,
                part.stride,
                part.runs,
                part.bytes,
            )?;
        }
        Ok(whole)
    }

    /// Copies `runs` runs of `bytes` bytes from one tensor to another, each with its start and its stride.
    #[allow(clippy::too_many_arguments, reason = "two places and what lies there")]
    fn copy_into(
        &self,
        from: TensorView<'_>,
        from_start: u64,
        from_stride: u64,
        to: &mut Tensor,
        to_start: u64,
        to_stride: u64,
        runs: u64,
        bytes: u64,
    ) -> Result<()> {
        if runs == 0 || bytes == 0 {
            return Ok(());
        }
        let (source_bytes, target_bytes) = (from.nbytes(), to.nbytes());
        let end =
            |start: u64, stride: u64| (runs - 1).checked_mul(stride)?.checked_add(start)?.checked_add(bytes);
        let fits = |start, stride, total| end(start, stride).is_some_and(|end| end <= total);
        let apart = runs == 1 || (bytes <= from_stride && bytes <= to_stride);
        if !self.holds(from) || !self.holds(to.view()) {
            // A group may have put another tensor in the place of the one that it was to fill.
            let got = format!("memory of {} and {}", from.device(), to.view().device());
            let expected = format!("that of {}", self.device);
            return Err(from.error("copy a part", got, expected, "receive into the tensors that are given"));
        }
        if !fits(from_start, from_stride, source_bytes) || !fits(to_start, to_stride, target_bytes) || !apart
        {
            let got = format!("{runs} runs of {bytes} bytes between {source_bytes} and {target_bytes} bytes");
            return Err(from.error("copy a part", got, "runs within both", "report this as a bug"));
        }
        let block = Block {
            source_offset: from_start,
            target_offset: to_start,
            counts: [1, 1, runs],
            source_strides: [0, 0, from_stride],
            target_strides: [0, 0, to_stride],
            run: bytes,
        };
        let Some(mut target) = to.get_mut() else {
            return Err(from.error(
                "copy a part",
                "a target with other owners",
                "the only owner",
                "report this as a bug",
            ));
        };
        let (source, target) = (from.as_ptr(), target.as_mut_ptr());
        let transform =
            Transform { conversion: None, block, source, source_bytes, target, target_bytes, counters: None };
        if self.device.is_host_accessible() {
            // SAFETY: M2: both lie in memory that the CPU reads and writes. I1: the view keeps the source, and the only owner of the
            // target is borrowed mutably, so the two do not overlap.
            return unsafe { transform.on_cpu() };
        }
        self.device.run((), |stream, ()| {
            if self.device.driver().has_transforms() {
                // SAFETY: Q1: both are in the device's memory, as was checked. I1: the view keeps the source, and the target has no other owner, which is
                // borrowed mutably, so nothing else touches it until `run` returns; should the device not say that the work has ended, the pools
                // of both synchronize their memory before it is used again (Q3).
                return unsafe { stream.transform(&transform) };
            }
            (0..runs).try_for_each(|run| {
                let (at, to) =
                    ((from_start + run * from_stride) as usize, (to_start + run * to_stride) as usize);
                // SAFETY: as above; each run lies within both, as was checked.
                unsafe { stream.copy_on_device(target.wrapping_add(to), source.wrapping_add(at), bytes) }
            })
        })
    }

    /// A tensor with these bytes, which are as long as its info says.
    pub(super) fn upload(&self, info: TensorInfo, bytes: Vec<u8>) -> Result<Tensor> {
        let mut tensor = self.blank(info)?;
        tensor.fill(bytes.into())?;
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn info(dtype: DType, shape: &[usize]) -> TensorInfo {
        let bits = shape.iter().product::<usize>() as u64 * u64::from(dtype.bits());
        let file = std::path::Path::new("f").into();
        TensorInfo { name: "t".into(), dtype, shape: shape.into(), nbytes: bits / 8, file }
    }

    #[test]
    fn a_part_is_a_run_for_each_outer_index() {
        let part = Part::new(&info(DType::F32, &[2, 6, 5]), 1, 2..5).unwrap();
        assert_eq!((part.runs, part.start, part.bytes, part.stride), (2, 40, 60, 120));
        assert_eq!((&part.info.shape[..], part.info.nbytes), (&[2, 3, 5][..], 120));
        assert!(!part.is_whole());
        assert!(Part::new(&info(DType::F32, &[6, 5]), 0, 0..6).unwrap().is_whole());
    }

    #[test]
    fn parts_that_split_a_byte_or_are_not_there_are_refused() {
        let packed = info(DType::F4, &[3, 4]);
        assert!(Part::new(&packed, 1, 0..2).is_ok());
        assert!(Part::new(&packed, 1, 0..1).unwrap_err().to_string().contains("whole bytes"));
        assert!(Part::new(&packed, 2, 0..1).unwrap_err().to_string().contains("2 dimensions"));
        assert!(Part::new(&packed, 0, 2..4).unwrap_err().to_string().contains("0..3"));
    }

    #[test]
    fn what_has_no_elements_is_cut_without_overflow() {
        let empty = info(DType::F64, &[0, 5]);
        let huge = TensorInfo { shape: [usize::MAX, usize::MAX, 0][..].into(), ..empty };
        let part = Part::new(&huge, 0, 0..7).unwrap();
        assert_eq!((part.info.nbytes, part.runs), (0, 0));
    }
}
