//! [`TransformSpec`]: the conversions and cuts that a caller requests of a load.

use std::collections::{BTreeMap, BTreeSet};

use tensorhold_kernels::Overflow;

use super::cut::Cut;
use super::rule::Rule;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Remedy, Result};
use crate::tensor::TensorInfo;

/// Where elements are converted and gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TransformOn {
    /// On the device if its driver has transforms, else on the CPU. Also on the CPU where that is faster:
    /// where it reduces the bytes that cross the bus and enough readers share the work.
    #[default]
    Auto,
    /// On the device. A device without transforms is an error (I6), and so is host memory.
    Device,
    /// On the CPU, before the bytes are copied to the device.
    Cpu,
}

/// How a cut that takes a part of each row is read through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CutReads {
    /// The faster way, chosen for each tensor.
    #[default]
    Auto,
    /// One read for each part.
    Parts,
    /// Whole rows, from which the parts are gathered.
    Rows,
}

/// The types that tensors can be converted to.
pub(crate) const DTYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::F8_E4M3, DType::F8_E5M2];

/// The conversions and cuts of a load.
#[derive(Debug, Clone, Default)]
pub(crate) struct TransformSpec {
    /// The target type of all floats.
    pub(crate) dtype: Option<DType>,
    /// The target type of single tensors; takes precedence over `dtype`.
    pub(crate) dtype_rule: Option<Rule<Option<DType>>>,
    pub(crate) cuts: CutList,
    pub(crate) overflow: Overflow,
    pub(crate) counts: bool,
    pub(crate) transform_on: TransformOn,
    pub(crate) cut_reads: CutReads,
}

/// Cuts, each with its position in the order of the requests: a tensor's cuts are applied in that order.
#[derive(Debug, Clone, Default)]
pub(crate) struct CutList {
    count: usize,
    named: BTreeMap<String, Vec<(usize, Cut)>>,
    rules: Vec<(usize, Rule<Vec<Cut>>)>,
}

impl CutList {
    pub(crate) fn add(&mut self, name: String, cut: Cut) {
        self.named.entry(name).or_default().push((self.count, cut));
        self.count += 1;
    }

    pub(crate) fn add_rule(&mut self, rule: Rule<Vec<Cut>>) {
        self.rules.push((self.count, rule));
        self.count += 1;
    }

    /// Whether no cut was requested.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The cuts of a tensor.
    ///
    /// # Errors
    /// When a rule calls itself.
    pub(super) fn of(&self, info: &TensorInfo) -> Result<Vec<(usize, Cut)>> {
        let mut cuts = self.named.get(&*info.name).cloned().unwrap_or_default();
        for (number, rule) in &self.rules {
            cuts.extend(rule.of(info)?.into_iter().map(|cut| (*number, cut)));
        }
        // A stable sort: the cuts of one rule keep their order.
        cuts.sort_by_key(|(number, _)| *number);
        Ok(cuts)
    }
}

impl TransformSpec {
    /// Whether tensors are loaded as they are in their files.
    pub(crate) fn is_nothing(&self) -> bool {
        self.dtype.is_none() && self.dtype_rule.is_none() && self.cuts.is_empty()
    }

    /// The spec of one tensor, with these cuts after its own.
    pub(crate) fn of_one(&self, name: &str, cuts: &[Cut]) -> Self {
        let CutList { count, named, rules } = &self.cuts;
        let named = named.get_key_value(name).map(|(name, cuts)| (name.clone(), cuts.clone()));
        let mut all = CutList { count: *count, named: named.into_iter().collect(), rules: rules.clone() };
        cuts.iter().for_each(|cut| all.add(name.into(), *cut));
        Self { cuts: all, dtype_rule: self.dtype_rule.clone(), ..*self }
    }

    /// Removes the cuts of tensors by name.
    pub(crate) fn forget(&mut self, forgotten: impl Fn(&str) -> bool) {
        self.cuts.named.retain(|name, _| !forgotten(name));
    }

    /// Checks the parts of the spec that do not depend on a tensor.
    ///
    /// # Errors
    /// When no conversion has `dtype` as its target.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(dtype) = self.dtype.filter(|&dtype| !DTYPES.contains(&dtype)) else { return Ok(()) };
        Err(Error::Option {
            option: "dtype",
            got: dtype.to_string(),
            expected: format!("one of {}", spelled(&DTYPES)),
            remedy: "load the tensors as they are, and convert them where they are used".into(),
        })
    }

    /// Whether the device does the transforms, if there are any, and why.
    ///
    /// # Errors
    /// When [`TransformOn::Device`] is required and the device has no transforms.
    pub(crate) fn on_device(&self, device: &Device) -> Result<(bool, &'static str)> {
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

    /// Whether this many readers may transform in place of a device that could: a condition of
    /// [`prefer_cpu_before_bus`](super::TensorTransforms::prefer_cpu_before_bus).
    pub(crate) fn may_leave_device(&self, readers: usize) -> bool {
        self.transform_on == TransformOn::Auto && readers >= MANY_READERS && !self.counts
    }

    /// Checks that each tensor that is cut by name exists.
    ///
    /// # Errors
    /// For the first name without a tensor.
    pub(crate) fn check_names<'a>(&self, all: impl Iterator<Item = &'a TensorInfo> + Clone) -> Result<()> {
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
}

/// This many readers convert F32 to BF16 as fast as a PCIe 5 bus transfers F32 (`docs/performance.md`).
const MANY_READERS: usize = 12;

/// The names of types, for messages.
pub(super) fn spelled(dtypes: &[DType]) -> String {
    dtypes.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ")
}
