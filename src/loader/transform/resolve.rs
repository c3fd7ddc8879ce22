//! Resolving the spec of a load for each tensor: checked before the bytes of any tensor are read.

use std::ops::Range;
use std::sync::Arc;

use tensorhold_kernels::{Conversion, Type};

use super::spec::{CutReads, DTYPES, TransformSpec, spelled};
use super::strided::Strided;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::Place;
use crate::shape::Shape;
use crate::tensor::TensorInfo;

/// How a tensor is converted, gathered from several runs of its file, or both.
#[derive(Debug, Clone)]
pub(crate) struct TensorTransform {
    pub(crate) name: Arc<str>,
    pub(crate) conversion: Option<Conversion>,
    /// Bytes of a unit of `strided` in the file.
    pub(crate) unit: u64,
    /// Bytes of a unit in the region.
    pub(crate) target_unit: u64,
    pub(crate) strided: Strided,
}

/// A tensor after the spec of its load has been applied.
#[derive(Debug)]
pub(crate) struct ResolvedTensor {
    /// The tensor as it will be loaded.
    pub(crate) info: TensorInfo,
    /// Offset of its first byte in the file, and its length in the region.
    pub(crate) place: Place,
    /// `None` if its bytes lie in the file as they will in the region.
    pub(crate) transform: Option<TensorTransform>,
}

/// The transformed tensors of a load.
#[derive(Debug, Default)]
pub(crate) struct TensorTransforms {
    /// Each with the tensor's number in the load, in ascending order.
    pub(crate) tensors: Vec<(usize, TensorTransform)>,
    /// Streams of the device transform from staging memory. Otherwise the CPU transforms.
    pub(crate) on_device: bool,
    /// The reason for `on_device`, for the report.
    pub(crate) why: &'static str,
    pub(crate) cut_reads: CutReads,
}

impl TensorTransforms {
    /// The bytes of file elements that a load of `bytes` bytes is made from.
    pub(crate) fn file_bytes(&self, bytes: u64) -> u64 {
        self.tensors.iter().fold(bytes, |bytes, (_, transform)| {
            let TensorTransform { strided, unit, target_unit, .. } = transform;
            let units = strided.units(0);
            bytes.saturating_sub(units * target_unit).saturating_add(units * unit)
        })
    }

    /// Moves the transforms from the device to the CPU if all of them are fast there and reduce the bytes
    /// that cross the bus, which is the bottleneck.
    pub(crate) fn prefer_cpu_before_bus(&mut self) {
        let quick = |transform: &TensorTransform| {
            let pair = transform.conversion.as_ref().map(|conversion| (conversion.from(), conversion.to()));
            pair.is_none_or(|pair| pair == (Type::F32, Type::BF16))
        };
        if self.on_device && self.tensors.iter().all(|(_, transform)| quick(transform)) {
            self.on_device = false;
            self.why = "that makes fewer bytes for the bus, and readers are many";
        }
    }
}

impl TransformSpec {
    /// Applies the spec to a tensor at `place`. `None` if it requests nothing of this tensor.
    ///
    /// # Errors
    /// When the requested conversion or cut is not supported for this tensor.
    pub(crate) fn resolve(&self, info: &TensorInfo, place: Place) -> Result<Option<ResolvedTensor>> {
        let ranges = self.ranges(info)?;
        let dtype = self.dtype_of(info)?;
        if dtype == info.dtype && ranges.is_none() {
            return Ok(None);
        }
        let conversion = (dtype != info.dtype).then(|| self.conversion(info, dtype)).transpose()?;
        let whole = || info.shape.iter().map(|&there| 0..there).collect();
        let ranges: Vec<Range<usize>> = ranges.unwrap_or_else(whole);
        let elements = Strided::elements(&info.shape, &ranges);
        let strided = match conversion {
            Some(_) => elements,
            None => elements.in_bytes(info.dtype.bits()).ok_or_else(|| within_bytes(info, &ranges))?,
        };
        let (unit, target_unit) =
            conversion.as_ref().map_or((1, 1), |by| (by.from().bytes() as u64, by.to().bytes() as u64));
        let shape: Shape = ranges.iter().map(Range::len).collect::<Vec<_>>().into();
        let nbytes = strided.units(0).checked_mul(target_unit).ok_or_else(|| too_large(info, dtype))?;
        let place = Place { start: place.start + strided.offset * unit, bytes: nbytes };
        let info = TensorInfo { dtype, shape, nbytes, ..info.clone() };
        // A single run without a conversion is read like any other tensor.
        let transform = (conversion.is_some() || !strided.levels.is_empty()).then(|| TensorTransform {
            name: Arc::clone(&info.name),
            conversion,
            unit,
            target_unit,
            strided,
        });
        Ok(Some(ResolvedTensor { info, place, transform }))
    }

    /// The range of each dimension that the cuts select; `None` without cuts.
    fn ranges(&self, info: &TensorInfo) -> Result<Option<Vec<Range<usize>>>> {
        let cuts = self.cuts.of(info)?;
        if cuts.is_empty() {
            return Ok(None);
        }
        let mut ranges: Vec<Range<usize>> = info.shape.iter().map(|&there| 0..there).collect();
        let mut shape = info.shape.to_vec();
        for (_, cut) in cuts {
            let (dim, part) = cut.of(info, &shape)?;
            // Both lie within the dimension: no overflow.
            let start = ranges[dim].start;
            ranges[dim] = start + part.start..start + part.end;
            shape[dim] = part.len();
        }
        Ok(Some(ranges))
    }

    fn dtype_of(&self, info: &TensorInfo) -> Result<DType> {
        let ruled = self.dtype_rule.as_ref().map_or(Ok(None), |rule| rule.of(info))?;
        let all = || self.dtype.filter(|_| FLOATS.contains(&info.dtype));
        Ok(ruled.or_else(all).unwrap_or(info.dtype))
    }

    fn conversion(&self, info: &TensorInfo, dtype: DType) -> Result<Conversion> {
        let pair = kernel_type(info.dtype).zip(kernel_type(dtype));
        match pair.map(|(from, to)| Conversion::new(from, to)) {
            Some(Ok(conversion)) => Ok(conversion.overflow(self.overflow)),
            _ => Err(Error::Tensor {
                operation: "convert",
                name: info.name.to_string(),
                got: format!("{} to {dtype}", info.dtype),
                expected: match kernel_type(info.dtype) {
                    Some(_) => format!("one of {}, or {} as it is", spelled(&DTYPES), info.dtype),
                    None => format!("{} as it is", info.dtype),
                },
                remedy: "have the rule return None for it".into(),
            }),
        }
    }
}

/// The types that a conversion of all tensors converts. Quantized types have scales of their own, and
/// integers are indexes.
const FLOATS: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

/// The kernels' type of a `DType`; `None` if they do not convert it.
fn kernel_type(dtype: DType) -> Option<Type> {
    Type::ALL.iter().copied().find(|kernel| kernel.name() == dtype.name())
}

fn within_bytes(info: &TensorInfo, ranges: &[Range<usize>]) -> Error {
    let bits = info.dtype.bits();
    Error::Tensor {
        operation: "cut",
        name: info.name.to_string(),
        got: format!("elements {ranges:?} of {}", info.spelled()),
        expected: format!("parts that begin and end with a byte: elements have {bits} bits"),
        remedy: "cut at a multiple of 8 elements, or along another dimension".into(),
    }
}

fn too_large(info: &TensorInfo, dtype: DType) -> Error {
    Error::Tensor {
        operation: "convert",
        name: info.name.to_string(),
        got: format!("{} to {dtype}", info.spelled()),
        expected: "fewer than 2^64 bytes".into(),
        remedy: "load a part of it".into(),
    }
}
