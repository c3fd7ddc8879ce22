//! [`Strided`]: where the elements of a cut tensor lie in its file.

use std::ops::Range;

use smallvec::SmallVec;

/// The elements of a block of a tensor, as contiguous runs of units in the file. A unit is an element if
/// elements are converted, else a byte. In the region the elements are dense.
///
/// Adjacent dimensions that are contiguous form one level, so the runs of a level do not touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strided {
    /// Units from the tensor's start to the first unit.
    pub(crate) offset: u64,
    /// Outermost first.
    pub(crate) levels: SmallVec<[Level; 3]>,
    /// Length of a run, in units.
    pub(crate) run: u64,
}

/// Repetitions of the inner levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    /// 2 or more.
    pub(crate) count: u64,
    /// Units from one repetition to the next in the file.
    pub(crate) stride: u64,
}

impl Strided {
    /// The elements in these ranges of a tensor's dimensions. The number of elements fits in a `u64`: the
    /// header was checked for that.
    pub(crate) fn elements(shape: &[usize], ranges: &[Range<usize>]) -> Self {
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
                    // Contiguous with its next repetition.
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

    /// The same in bytes, for elements of `bits` bits; `None` if a run begins or ends within a byte.
    pub(crate) fn in_bytes(&self, bits: u32) -> Option<Self> {
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

    /// Units of all runs of this level and its inner levels.
    pub(crate) fn units(&self, level: usize) -> u64 {
        self.inner(level).iter().fold(self.run, |units, level| units * level.count)
    }

    /// Units in the file from the first unit of this level to the end of its last one.
    pub(crate) fn span(&self, level: usize) -> u64 {
        self.inner(level).iter().fold(self.run, |span, level| span + (level.count - 1) * level.stride)
    }

    /// Units between two runs of the innermost level; `None` for a single run.
    pub(crate) fn gap(&self) -> Option<u64> {
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
