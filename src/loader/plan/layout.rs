//! [`LoadLayout`]: the tensors of a load, and their places in memory.

use std::sync::Arc;

use tensorhold_allocator::offsets::{Layout, Placement};
use tensorhold_allocator::{Fragment, Pool, Reserved};

use super::jobs::{Extent, Limits, Plan};
use super::planner::plan_jobs;
use crate::error::Result;
use crate::format::Place;
use crate::loader::metadata::OpenedFile;
use crate::loader::transform::TensorTransforms;

/// A load's tensors, in the order of the layout: file by file, in the order of their bytes.
#[derive(Debug)]
pub(crate) struct LoadLayout {
    /// The files, with the places of the load's tensors.
    pub(crate) files: Vec<OpenedFile>,
    pub(crate) memory: Layout,
    /// Conversions and cuts of some of the tensors.
    pub(crate) transforms: TensorTransforms,
}

/// How tensors are laid out, in addition to the pool's rules. Default: as densely as possible.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LayoutOptions<'a> {
    /// One flag for each tensor that outlives the others: those get regions of their own, so that they keep
    /// no other memory reserved. Empty: none does.
    pub(crate) kept: &'a [bool],
    /// The least length of a load's single region, in bytes.
    pub(crate) min_region_bytes: u64,
    /// Regions are new, and are not shared with other loads.
    pub(crate) separate: bool,
    /// Device memory that the load may take in addition to its tensors, in bytes. `None`: the rest of the
    /// budget.
    pub(crate) scratch_bytes: Option<u64>,
}

impl LoadLayout {
    /// Has the pool lay out the tensors of these files.
    ///
    /// # Errors
    /// When they do not fit into what the pool allows.
    pub(crate) fn new(
        files: Vec<OpenedFile>,
        pool: &Pool,
        transforms: TensorTransforms,
        options: LayoutOptions<'_>,
    ) -> Result<Self> {
        let mut memory = match options.kept.iter().any(|kept| *kept) {
            true => lay_out_kept_apart(&files, pool, options.kept)?,
            false => pool.lay_out(extents(&files).map(|extent| extent.request()))?,
        };
        if let [region] = &mut memory.regions[..] {
            region.size = region.size.max(options.min_region_bytes);
        }
        Ok(Self { files, memory, transforms })
    }

    /// Number of tensors.
    pub(crate) fn len(&self) -> usize {
        self.memory.placements.len()
    }

    /// Bytes of the tensors, without padding.
    pub(crate) fn bytes(&self) -> u64 {
        self.memory.placements.iter().map(|placement| placement.bytes).sum()
    }

    /// The label of the memory before it is divided into tensors.
    pub(crate) fn label(&self) -> Arc<str> {
        let path = self.files.first().map(|file| file.source.path().to_string_lossy());
        path.unwrap_or_default().into()
    }

    /// Bytes of the files that the tensors are made from.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.transforms.file_bytes(self.bytes())
    }

    /// Plans jobs within these limits.
    pub(crate) fn plan(&self, limits: Limits) -> Plan {
        plan_jobs(extents(&self.files), &self.memory, limits, &self.transforms)
    }

    /// Divides the memory into fragments, one for each tensor, with these labels.
    ///
    /// # Errors
    /// Those of the pool; `reserved` then still owns all of the memory.
    pub(crate) fn place(&self, reserved: &mut Reserved, labels: Vec<Arc<str>>) -> Result<Vec<Fragment>> {
        Ok(reserved.place(&self.memory, labels)?.fragments)
    }
}

/// Lays out the kept tensors in regions of their own, after the others' regions.
fn lay_out_kept_apart(files: &[OpenedFile], pool: &Pool, kept: &[bool]) -> Result<Layout> {
    let requests = |of: bool| {
        let of = extents(files).zip(kept).filter(move |(_, kept)| **kept == of);
        of.map(|(extent, _)| extent.request())
    };
    let (passing, staying) = (pool.lay_out(requests(false))?, pool.lay_out(requests(true))?);
    let (mut regions, before) = (passing.regions, passing.placements.len());
    let first = regions.len() as u32;
    regions.extend(staying.regions);
    let behind = |place: Placement| Placement { region: first + place.region, ..place };
    let (mut passing, mut staying) =
        (passing.placements.into_iter(), staying.placements.into_iter().map(behind));
    let mut placements = Vec::with_capacity(before + staying.len());
    placements.extend(kept.iter().map_while(|kept| if *kept { staying.next() } else { passing.next() }));
    Ok(Layout { regions, placements })
}

/// The extents of the tensors of some files.
fn extents(files: &[OpenedFile]) -> impl Iterator<Item = Extent> {
    let extents = files.iter().enumerate().flat_map(|(file, opened)| {
        opened.places.iter().map(move |&Place { start, bytes }| Extent { file, start, bytes })
    });
    Counted { extents, left: files.iter().map(|file| file.places.len()).sum() }
}

/// Extents with a known number, so that collections allocate once.
struct Counted<I> {
    extents: I,
    left: usize,
}

impl<I: Iterator<Item = Extent>> Iterator for Counted<I> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        self.left = self.left.saturating_sub(1);
        self.extents.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}
