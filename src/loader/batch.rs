//! A planned load: which tensors of which files, and where they will lie.

use std::sync::Arc;

use tensorhold_allocator::offsets::{Layout, Placement};
use tensorhold_allocator::{Fragment, Pool, Reserved};

use super::change::Changes;
use super::headers::Opened;
use super::options::Readers;
use super::plan::{Extent, Plan};
use crate::error::Result;
use crate::format::Place;
use crate::io::residency::Probe;

/// A load's tensors, in the order of the layout: file by file, in the order of their bytes.
#[derive(Debug)]
pub(super) struct Batch {
    /// The files and, of each, the places of those tensors.
    pub(super) files: Vec<Opened>,
    pub(super) layout: Layout,
    /// Those of the tensors that do not come as they lie in the files.
    pub(super) changes: Changes,
}

/// How tensors lie in memory, beside what the pool says. By default as close as they can.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Placing<'a> {
    /// The tensors that stay longer than the others, one flag for each: those have regions of their own, so that they keep no others' memory
    /// reserved. None, if there are no flags.
    pub(super) kept: &'a [bool],
    /// How long a single region is at least.
    pub(super) region_bytes: u64,
    /// Regions are new ones, which no other tensors are in, or will be.
    pub(super) apart: bool,
    /// How much device memory the load may take beside that of its tensors, if that is not what its tensors leave of the budget.
    pub(super) besides: Option<u64>,
}

impl Batch {
    /// The tensors that are left in the files, laid out by the pool.
    pub(super) fn new(
        files: Vec<Opened>,
        pool: &Pool,
        changes: Changes,
        placing: Placing<'_>,
    ) -> Result<Self> {
        let mut layout = match placing.kept.iter().any(|kept| *kept) {
            true => lay_out_apart(&files, pool, placing.kept)?,
            false => pool.lay_out(extents(&files).map(|extent| extent.request()))?,
        };
        if let [region] = &mut layout.regions[..] {
            region.size = region.size.max(placing.region_bytes);
        }
        Ok(Self { files, layout, changes })
    }

    /// How many tensors there are.
    pub(super) fn len(&self) -> usize {
        self.layout.placements.len()
    }

    /// Bytes of the tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.layout.placements.iter().map(|placement| placement.bytes).sum()
    }

    /// What the memory is called before it is cut into tensors.
    pub(super) fn label(&self) -> Arc<str> {
        let path = self.files.first().map(|file| file.source.path().to_string_lossy());
        path.unwrap_or_default().into()
    }

    /// Whether the files are in the page cache, as far as samples tell.
    pub(super) fn is_cached(&self) -> bool {
        let probe = Probe::default();
        let is_cached = |file: &Opened| {
            let open = file.source.lease();
            open.is_ok_and(|open| probe.samples(open.file(), file.source.len()))
        };
        self.files.iter().all(is_cached)
    }

    /// Bytes of the files that they are made of.
    pub(super) fn file_bytes(&self) -> u64 {
        self.changes.file_bytes(self.bytes())
    }

    /// What these readers do to read it.
    pub(super) fn plan(&self, readers: &Readers) -> Plan {
        Plan::new(extents(&self.files), &self.layout, readers.limits(), &self.changes)
    }

    /// Cuts the memory into that of the tensors, which have these labels. After an error the memory is where it was.
    pub(super) fn place(&self, reserved: &mut Reserved, labels: Vec<Arc<str>>) -> Result<Vec<Fragment>> {
        Ok(reserved.place(&self.layout, labels)?.fragments)
    }
}

/// Lays out the tensors that stay behind the others, in regions of their own.
fn lay_out_apart(files: &[Opened], pool: &Pool, kept: &[bool]) -> Result<Layout> {
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

/// Where the tensors of some files are.
fn extents(files: &[Opened]) -> impl Iterator<Item = Extent> {
    let extents = files.iter().enumerate().flat_map(|(file, opened)| {
        opened.places.iter().map(move |&Place { start, bytes }| Extent { file, start, bytes })
    });
    Counted { extents, left: files.iter().map(|file| file.places.len()).sum() }
}

/// Extents whose number is known, so that what they are collected in need not grow.
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
