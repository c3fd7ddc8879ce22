//! [`Strided`]: where the elements of a cut tensor lie in its file.

use std::ops::Range;

use smallvec::SmallVec;

/// The elements of a block of a tensor, as runs of units that lie side by side in the file. A unit is an element where elements are converted,
/// and a byte where they are not. Where they go they are dense.
///
/// Dimensions that lie side by side are one level, so a level's runs do not touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Strided {
    /// Where the first unit is, from the tensor's start on.
    pub(super) offset: u64,
    /// Outermost first.
    pub(super) levels: SmallVec<[Level; 3]>,
    /// Units of a run.
    pub(super) run: u64,
}

/// Repetitions of all that is further in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    /// 2 or more.
    pub(super) count: u64,
    /// Units from one to the next in the file.
    pub(super) stride: u64,
}

impl Strided {
    /// The elements of these ranges of a tensor's dimensions. Its number of elements fits a `u64`, as was checked when its header was read.
    pub(super) fn elements(shape: &[usize], ranges: &[Range<usize>]) -> Self {
        let mut strided = Self { offset: 0, levels: SmallVec::new(), run: 1 };
        if ranges.iter().any(|range| range.is_empty()) {
            return Self { run: 0, ..strided };
        }
        let mut stride = 1_u64;
        // From the innermost dimension outwards.
        for (&there, range) in shape.iter().zip(ranges).rev() {
            let count = range.len() as u64;
            strided.offset += range.start as u64 * stride;
            if count > 1 {
                match strided.levels.last_mut() {
                    // What is inside lies side by side with its next repetition.
                    None if stride == strided.run => strided.run *= count,
                    Some(inner) if inner.stride * inner.count == stride => inner.count *= count,
                    _ => strided.levels.push(Level { count, stride }),
                }
            }
            stride = stride.saturating_mul(there as u64);
        }
        strided.levels.reverse();
        strided
    }

    /// The same in bytes, of elements of so many bits; `None` where it is cut within a byte.
    pub(super) fn in_bytes(&self, bits: u32) -> Option<Self> {
        let bytes = |elements: u64| {
            let bits = elements.checked_mul(bits.into())?;
            bits.is_multiple_of(8).then_some(bits / 8)
        };
        let level = |level: &Level| Some(Level { count: level.count, stride: bytes(level.stride)? });
        Some(Self {
            offset: bytes(self.offset)?,
            levels: self.levels.iter().map(level).collect::<Option<_>>()?,
            run: bytes(self.run)?,
        })
    }

    /// Units of all runs from this level on.
    pub(super) fn units(&self, level: usize) -> u64 {
        self.inner(level).iter().fold(self.run, |units, level| units * level.count)
    }

    /// From the first unit of what is from this level on to behind its last one, in the file.
    pub(super) fn span(&self, level: usize) -> u64 {
        self.inner(level).iter().fold(self.run, |span, level| span + (level.count - 1) * level.stride)
    }

    /// Units that lie between two runs of the innermost level; `None` where there is but one run.
    pub(super) fn gap(&self) -> Option<u64> {
        self.levels.last().map(|level| level.stride - self.run)
    }

    fn inner(&self, level: usize) -> &[Level] {
        self.levels.get(level..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strided(shape: &[usize], ranges: &[Range<usize>]) -> (u64, Vec<(u64, u64)>, u64) {
        let Strided { offset, levels, run } = Strided::elements(shape, ranges);
        (offset, levels.iter().map(|level| (level.count, level.stride)).collect(), run)
    }

    #[test]
    fn what_lies_side_by_side_is_one_run_or_one_level() {
        assert_eq!(strided(&[], &[]), (0, vec![], 1));
        assert_eq!(strided(&[4, 6], &[0..4, 0..6]), (0, vec![], 24));
        assert_eq!(strided(&[4, 6], &[1..3, 0..6]), (6, vec![], 12));
        assert_eq!(strided(&[4, 6], &[0..4, 2..4]), (2, vec![(4, 6)], 2));
        assert_eq!(strided(&[4, 6], &[2..3, 2..4]), (14, vec![], 2));
        assert_eq!(strided(&[3, 4, 6], &[0..3, 0..4, 5..6]), (5, vec![(12, 6)], 1));
        assert_eq!(strided(&[3, 4, 6], &[0..3, 1..3, 0..6]), (6, vec![(3, 24)], 12));
        assert_eq!(strided(&[3, 4, 6], &[1..3, 1..3, 1..3]), (31, vec![(2, 24), (2, 6)], 2));
        assert_eq!(strided(&[3, 1, 6], &[1..3, 0..1, 0..6]), (6, vec![], 12));
        assert_eq!(strided(&[3, 4], &[0..0, 1..2]), (0, vec![], 0));
    }

    #[test]
    fn packed_elements_are_cut_at_whole_bytes() {
        let cut = |ranges: [Range<usize>; 2]| Strided::elements(&[4, 6], &ranges).in_bytes(4);
        assert_eq!(cut([0..4, 2..4]).map(|bytes| (bytes.offset, bytes.run)), Some((1, 1)));
        assert_eq!(cut([0..4, 1..3]), None);
        assert_eq!(cut([0..4, 2..5]), None);
    }
}
