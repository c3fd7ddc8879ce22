//! [`Changes`]: the tensors that do not come as they lie in their files.

use std::sync::Arc;

use tensorhold_kernels::{Conversion, Type};

use super::asked::CutReads;
use super::parts::{Part, Reading};
use super::plan::Plan;
use super::strided::Strided;
use crate::format::Place;
use crate::report::Choice;
use crate::tensor::TensorInfo;

/// A tensor that is converted, or that is made of parts which do not lie side by side.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) name: Arc<str>,
    pub(super) conversion: Option<Conversion>,
    /// Bytes of a unit of `strided` in the file, and where it goes.
    pub(super) unit: u64,
    pub(super) target_unit: u64,
    pub(super) strided: Strided,
}

/// What was asked of a tensor, and how it is to be had.
#[derive(Debug)]
pub(super) struct Found {
    /// The tensor as it will be.
    pub(super) info: TensorInfo,
    /// Where its first byte is in the file, and how many bytes it will have.
    pub(super) place: Place,
    /// `None` where it lies there as it will be.
    pub(super) change: Option<Change>,
}

/// The changed tensors of a batch, and how they are changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// With their numbers, in ascending order.
    pub(super) changed: Vec<(usize, Change)>,
    /// The device's streams transform what lies in staging memory; the CPU does otherwise.
    pub(super) on_device: bool,
    /// Why that is so.
    pub(super) why: &'static str,
    pub(super) cut_reads: CutReads,
}

impl Changes {
    /// Bytes of the files' elements that a batch of so many bytes is made of.
    pub(super) fn file_bytes(&self, bytes: u64) -> u64 {
        self.changed.iter().fold(bytes, |bytes, (_, change)| {
            let Change { strided, unit, target_unit, .. } = change;
            let units = strided.units(0);
            bytes.saturating_sub(units * target_unit).saturating_add(units * unit)
        })
    }

    /// Has the CPU do what the device can, if all of it is of the kind that many readers do quickly, and makes fewer bytes: then the bus, which is
    /// the limit, takes less time.
    pub(super) fn before_the_bus(&mut self) {
        let quick = |change: &Change| {
            let pair = change.conversion.as_ref().map(|conversion| (conversion.from(), conversion.to()));
            pair.is_none_or(|pair| pair == (Type::F32, Type::BF16))
        };
        if self.on_device && self.changed.iter().all(|(_, change)| quick(change)) {
            self.on_device = false;
            self.why = "that makes fewer bytes for the bus, and readers are many";
        }
    }

    /// What was chosen for this plan, and why.
    pub(super) fn choices(&self, plan: &Plan) -> Vec<Choice> {
        let mut choices = Vec::new();
        let cpu = plan.parts.iter().filter(|part| !part.on_device && self.is_transformed(part)).count();
        let device = plan.parts.iter().filter(|part| part.on_device).count();
        if cpu + device > 0 {
            let picked = if self.on_device { "on the device" } else { "on the CPU" };
            choices.push(Choice { about: "transforms", picked: picked.into(), why: self.why.into() });
        }
        let cut = |reading| {
            let of = move |part: &&Part| part.reading == reading && self.is_strided(part);
            plan.parts.iter().filter(of).count()
        };
        for (reading, picked, why) in [
            (Reading::Runs, "part by part", "what lies between them takes longer to read than a call"),
            (Reading::Whole, "with their rows", "little lies between them"),
        ] {
            let count = cut(reading);
            if count > 0 {
                let why = match self.cut_reads {
                    CutReads::Auto => format!("{count} jobs: {why}"),
                    _ => format!("{count} jobs: as asked"),
                };
                choices.push(Choice { about: "cuts", picked: picked.into(), why });
            }
        }
        choices
    }

    /// Whether what is read of a part through the page cache is still to be converted or gathered.
    pub(super) fn is_transformed(&self, part: &Part) -> bool {
        let converts = |(_, change): &(usize, Change)| change.conversion.is_some();
        part.reading == Reading::Whole || self.changed.get(part.change).is_some_and(converts)
    }

    fn is_strided(&self, part: &Part) -> bool {
        self.changed.get(part.change).is_some_and(|(_, change)| !change.strided.levels.is_empty())
    }
}
