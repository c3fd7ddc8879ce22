//! What a load is asked to change of the tensors on their way: types and parts. Each tensor's change is found, and checked, before any tensor's
//! bytes are read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use tensorhold_kernels::{Conversion, Overflow, Type};

use super::Loader;
use super::change::{Change, Found};
use super::cut::Cut;
use super::rule::Rule;
use super::strided::Strided;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Remedy, Result};
use crate::format::Place;
use crate::shape::Shape;
use crate::tensor::TensorInfo;

/// Where elements are converted and gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TransformOn {
    /// On the device where its driver can, else on the CPU. Also on the CPU where it is quicker: where the bus gets fewer bytes by that, and readers
    /// are many enough.
    #[default]
    Auto,
    /// On the device. One that cannot is an error (I6); so is host memory, whose device is the CPU.
    Device,
    /// On the CPU, before bytes are copied to the device.
    Cpu,
}

/// How the parts of a tensor that are cut from each of its rows are read through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CutReads {
    /// Tensor by tensor, the quicker way.
    #[default]
    Auto,
    /// Each part by a read of its own.
    Parts,
    /// Whole rows, of which the parts are then gathered.
    Rows,
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    /// For all floats.
    pub(super) dtype: Option<DType>,
    /// For each tensor, before that.
    pub(super) dtype_rule: Option<Rule<Option<DType>>>,
    pub(super) cuts: Cuts,
    pub(super) overflow: Overflow,
    pub(super) counts: bool,
    pub(super) transform_on: TransformOn,
    pub(super) cut_reads: CutReads,
}

/// Cuts, which are made in the order in which they were asked for: each has its number in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Cuts {
    count: usize,
    named: BTreeMap<String, Vec<(usize, Cut)>>,
    rules: Vec<(usize, Rule<Vec<Cut>>)>,
}

impl Cuts {
    pub(super) fn add(&mut self, name: String, cut: Cut) {
        self.named.entry(name).or_default().push((self.count, cut));
        self.count += 1;
    }

    pub(super) fn add_rule(&mut self, rule: Rule<Vec<Cut>>) {
        self.rules.push((self.count, rule));
        self.count += 1;
    }

    /// Whether none were asked for.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Those of a tensor.
    ///
    /// # Errors
    /// When a rule asks for its own answer.
    fn of(&self, info: &TensorInfo) -> Result<Vec<(usize, Cut)>> {
        let mut cuts = self.named.get(&*info.name).cloned().unwrap_or_default();
        for (number, rule) in &self.rules {
            cuts.extend(rule.of(info)?.into_iter().map(|cut| (*number, cut)));
        }
        // Those of one rule stay in their order.
        cuts.sort_by_key(|(number, _)| *number);
        Ok(cuts)
    }
}

impl Asked {
    /// Whether tensors are loaded as they are in their files.
    pub(super) fn is_nothing(&self) -> bool {
        self.dtype.is_none() && self.dtype_rule.is_none() && self.cuts.is_empty()
    }

    /// The same of the tensor of this name alone, which is cut by these, too, after all else.
    pub(super) fn of_one(&self, name: &str, cuts: &[Cut]) -> Self {
        let Cuts { count, named, rules } = &self.cuts;
        let named = named.get_key_value(name).map(|(name, cuts)| (name.clone(), cuts.clone()));
        let mut all = Cuts { count: *count, named: named.into_iter().collect(), rules: rules.clone() };
        cuts.iter().for_each(|cut| all.add(name.into(), *cut));
        Self { cuts: all, dtype_rule: self.dtype_rule.clone(), ..*self }
    }

    /// Forgets what is asked of the tensors that have these names alone.
    pub(super) fn forget(&mut self, forgotten: impl Fn(&str) -> bool) {
        self.cuts.named.retain(|name, _| !forgotten(name));
    }

    /// Checks what can be checked without a tensor.
    pub(super) fn check(&self) -> Result<()> {
        let Some(dtype) = self.dtype.filter(|&dtype| !Loader::DTYPES.contains(&dtype)) else { return Ok(()) };
        Err(Error::Option {
            option: "dtype",
            got: dtype.to_string(),
            expected: format!("one of {}", spelled(&Loader::DTYPES)),
            remedy: "load the tensors as they are, and convert them where they are used".into(),
        })
    }

    /// Whether the device transforms, and why. Nothing need be transformed.
    ///
    /// # Errors
    /// When it has to, and cannot.
    pub(super) fn on_device(&self, device: &Device) -> Result<(bool, &'static str)> {
        let can = !device.is_host_accessible() && device.driver().has_transforms();
        match self.transform_on {
            TransformOn::Auto if can => Ok((true, "it reads staging memory, and writes where tensors stay")),
            TransformOn::Auto if device.is_host_accessible() => Ok((false, "the CPU can write the target")),
            TransformOn::Auto => Ok((false, "the device's driver has no transforms")),
            TransformOn::Cpu => Ok((false, "as asked")),
            TransformOn::Device if can => Ok((true, "as asked")),
            TransformOn::Device => Err(Error::Option {
                option: "transform_on",
                got: format!("the device {device}, which does not transform"),
                expected: "a device whose driver has transforms".into(),
                remedy: Remedy::AUTO_TRANSFORM,
            }),
        }
    }

    /// Whether the CPU may do what the device can, with so many readers: where something is asked for that
    /// [`before_the_bus`](super::change::Changes::before_the_bus) knows.
    pub(super) fn may_leave_device(&self, readers: usize) -> bool {
        self.transform_on == TransformOn::Auto && readers >= MANY_READERS && !self.counts
    }

    /// Checks that there is a tensor of each name that is to be cut.
    pub(super) fn check_names<'a>(&self, all: impl Iterator<Item = &'a TensorInfo> + Clone) -> Result<()> {
        let mut missing: BTreeSet<&str> = self.cuts.named.keys().map(String::as_str).collect();
        if missing.is_empty() {
            return Ok(());
        }
        all.clone().for_each(|info| {
            missing.remove(&*info.name);
        });
        match missing.pop_first() {
            Some(name) => {
                let tensors = all.clone().count();
                Err(Error::unknown_tensor(name, all.map(|info| &*info.name), tensors))
            }
            None => Ok(()),
        }
    }

    /// What is asked of a tensor that lies at `place`, if that is anything.
    ///
    /// # Errors
    /// When the tensor cannot be had like that.
    pub(super) fn of(&self, info: &TensorInfo, place: Place) -> Result<Option<Found>> {
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
        // What is one run and stays as it is can be read like any tensor.
        let change = (conversion.is_some() || !strided.levels.is_empty()).then(|| Change {
            name: Arc::clone(&info.name),
            conversion,
            unit,
            target_unit,
            strided,
        });
        Ok(Some(Found { info, place, change }))
    }

    /// The parts of the dimensions that are left; `None` where all are.
    fn ranges(&self, info: &TensorInfo) -> Result<Option<Vec<Range<usize>>>> {
        let cuts = self.cuts.of(info)?;
        if cuts.is_empty() {
            return Ok(None);
        }
        let mut ranges: Vec<Range<usize>> = info.shape.iter().map(|&there| 0..there).collect();
        let mut shape = info.shape.to_vec();
        for (_, cut) in cuts {
            let (dim, part) = cut.of(info, &shape)?;
            // Both are within the dimension.
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
                    Some(_) => format!("one of {}, or {} as it is", spelled(&Loader::DTYPES), info.dtype),
                    None => format!("{} as it is", info.dtype),
                },
                remedy: "have the rule return None for it".into(),
            }),
        }
    }
}

/// So many readers convert F32 to BF16 as fast as a bus of PCIe 5 takes F32 (`docs/performance.md`).
const MANY_READERS: usize = 12;

/// What a conversion of all converts: what is quantized has scales that belong to it, and integers are indexes.
const FLOATS: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

fn spelled(dtypes: &[DType]) -> String {
    dtypes.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ")
}

/// What the kernels call a type; `None` for one that they do not convert.
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
