//! Checks the layout of a batch before anything relies on it: its fields are public (I7).

use smallvec::SmallVec;

use crate::offsets::{Layout, Placement};

/// The largest distance in bytes for which pointer arithmetic is defined; no address space is larger.
pub(crate) const MOST_BYTES: u64 = isize::MAX as u64;

/// Offsets and bytes of the non-empty fragments in each region of a layout, in order.
pub(crate) type ByRegion = SmallVec<[Vec<(u64, u64)>; 4]>;

/// Checks that a layout has `count` fragments, that they lie in its regions in order, from offset 0 and without overlap, and that the
/// regions have sizes and alignments that a memory can be asked for.
pub(crate) fn check(layout: &Layout, count: usize) -> Result<(), String> {
    if layout.placements.len() != count {
        return Err(format!("the layout has {} placements", layout.placements.len()));
    }
    let mut all: u64 = 0;
    for (region, shape) in layout.regions.iter().enumerate() {
        if !shape.align.is_power_of_two() {
            return Err(format!("region {region} has an alignment of {}, no power of two", shape.align));
        }
        let total = all.checked_add(shape.size).filter(|all| all.saturating_add(shape.align) <= MOST_BYTES);
        all = total.ok_or_else(|| {
            let (size, align) = (shape.size, shape.align);
            format!("up to region {region} of {size} bytes, aligned to {align}, the regions need more than 2^63 bytes")
        })?;
    }
    let mut ends: SmallVec<[Option<u64>; 4]> = SmallVec::from_elem(None, layout.regions.len());
    let placements = layout.placements.iter().enumerate();
    for (index, &Placement { region, offset, bytes }) in
        placements.filter(|(_, placement)| placement.bytes > 0)
    {
        let place = region as usize;
        let (Some(shape), Some(previous)) = (layout.regions.get(place), ends.get_mut(place)) else {
            return Err(format!("fragment {index} lies in region {region} of {}", layout.regions.len()));
        };
        let end = offset.checked_add(bytes).filter(|end| *end <= shape.size);
        let after_previous = previous.map_or(offset == 0, |previous| offset >= previous);
        let (Some(end), true) = (end, after_previous) else {
            let size = shape.size;
            return Err(format!(
                "fragment {index} of {bytes} bytes does not fit at offset {offset} of a region of {size}"
            ));
        };
        *previous = Some(end);
    }
    match ends.iter().position(Option::is_none) {
        Some(region) => Err(format!("region {region} of the layout holds no fragment")),
        None => Ok(()),
    }
}

/// The fragments of a layout that was [checked](check), by region.
pub(crate) fn by_region(layout: &Layout) -> ByRegion {
    let mut regions: ByRegion = SmallVec::from_elem(Vec::new(), layout.regions.len());
    for placement in layout.placements.iter().filter(|placement| placement.bytes > 0) {
        regions[placement.region as usize].push((placement.offset, placement.bytes));
    }
    regions
}
