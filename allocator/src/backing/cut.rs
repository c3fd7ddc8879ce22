//! Cuts a region into parts.

/// A part of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegionPart {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl RegionPart {
    /// Where it ends.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

/// The longest part that fragments share, unless units are longer.
const SHARED_BYTES: u64 = 32 << 20;

/// Cuts the units that a region's fragments touch into ascending parts. Units that no fragment touches are in no part.
///
/// The fragments are given by offsets and lengths (more than 0). They ascend and do not overlap, and rounding their ends up to units does
/// not overflow.
pub(crate) fn cut(fragments: impl IntoIterator<Item = (u64, u64)>, unit: u64) -> Vec<RegionPart> {
    let mut parts: Vec<RegionPart> = Vec::new();
    // Whether the last part is shared, so that units that follow it can be added.
    let mut open = false;
    let longest = (SHARED_BYTES / unit).max(1) * unit;
    for (offset, bytes) in fragments {
        let end = offset + bytes;
        let (first, last) = (offset / unit * unit, end.next_multiple_of(unit));
        // The units that it covers alone.
        let alone = (offset.next_multiple_of(unit), end / unit * unit);
        if alone.0 < alone.1 {
            share(&mut parts, open, first, alone.0, longest);
            parts.push(RegionPart { offset: alone.0, bytes: alone.1 - alone.0 });
            open = share(&mut parts, false, alone.1, last, longest);
        } else {
            open = share(&mut parts, open, first, last, longest);
        }
    }
    parts
}

/// Covers the rest of `from..to` with the last part, if that is `open` and ends there, and with new parts. Returns whether the last part
/// is shared.
fn share(parts: &mut Vec<RegionPart>, open: bool, from: u64, to: u64, longest: u64) -> bool {
    let covered = parts.last().map_or(0, RegionPart::end);
    let mut at = from.max(covered);
    if at >= to {
        return open;
    }
    if let Some(last) = parts.last_mut().filter(|last| open && last.end() == at) {
        let more = (longest - last.bytes).min(to - at);
        last.bytes += more;
        at += more;
    }
    while at < to {
        let bytes = longest.min(to - at);
        parts.push(RegionPart { offset: at, bytes });
        at += bytes;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 2 << 20;

    fn ends(parts: &[RegionPart]) -> Vec<(u64, u64)> {
        parts.iter().map(|part| (part.offset / UNIT, part.end() / UNIT)).collect()
    }

    #[test]
    fn what_a_fragment_has_to_itself_is_a_part_and_the_rest_is_shared() {
        let fragments = [(0, 5 * UNIT + 1000), (5 * UNIT + 1024, 8192), (5 * UNIT + 9216, 3 * UNIT)];
        assert_eq!(ends(&cut(fragments, UNIT)), [(0, 5), (5, 6), (6, 8), (8, 9)]);
        // Aligned tensors share nothing.
        assert_eq!(ends(&cut([(0, UNIT), (UNIT, 4 * UNIT)], UNIT)), [(0, 1), (1, 5)]);
        // Small ones share parts of at most 32 MiB.
        let small = (0..4000).map(|n| (n * 20_480, 20_480));
        assert_eq!(ends(&cut(small, UNIT)), [(0, 16), (16, 32), (32, 40)]);
    }

    #[test]
    fn units_in_a_gap_are_in_no_part() {
        let gaps = [(0, 1), (3 * UNIT - 1, 2), (9 * UNIT, 2 * UNIT + 1), (20 * UNIT, 1)];
        assert_eq!(ends(&cut(gaps, UNIT)), [(0, 1), (2, 4), (9, 11), (11, 12), (20, 21)]);
    }

    proptest! {
        #[test]
        fn each_touched_unit_is_in_one_part_and_no_fragment_pins_more_than_its_ends(
            sizes in prop::collection::vec((prop_oneof![1..5000_u64, 1..200_000_u64], 0..24_u32), 1..60),
            shift in 8..14_u32
        ) {
            let unit = 1 << shift;
            let mut end: u64 = 0;
            let fragments: Vec<(u64, u64)> = sizes.iter().map(|&(bytes, align)| {
                let offset = end.next_multiple_of(1 << align);
                end = offset + bytes;
                (offset, bytes)
            }).collect();
            let parts = cut(fragments.iter().copied(), unit);
            let mut at = 0;
            for part in &parts {
                prop_assert!(part.offset >= at && part.offset.is_multiple_of(unit));
                prop_assert!(part.bytes > 0 && part.bytes.is_multiple_of(unit));
                at = part.end();
                // Each of its units is touched: no two fragments lie further apart than the units that they lie in.
                let mut touched = part.offset;
                for &(offset, bytes) in fragments.iter().filter(|&&(offset, bytes)| {
                    offset < part.end() && part.offset < offset + bytes
                }) {
                    prop_assert!(offset < touched + unit, "{touched} is touched by no fragment");
                    touched = (offset + bytes).next_multiple_of(unit);
                }
                prop_assert!(touched >= part.end());
            }
            for (offset, bytes) in fragments {
                let covered: u64 = parts.iter()
                    .map(|part| part.end().min(offset + bytes).saturating_sub(part.offset.max(offset))).sum();
                prop_assert_eq!(covered, bytes, "a fragment at {}", offset);
                let alone: u64 = parts.iter()
                    .filter(|part| offset <= part.offset && part.end() <= offset + bytes)
                    .map(|part| part.bytes).sum();
                prop_assert!(alone + 2 * unit > bytes, "{bytes} at {offset}: only {alone} are its own");
            }
        }
    }
}
