//! Where the parts of a dimension begin and end. Pure arithmetic.

use std::ops::Range;

/// The indexes that part `rank` of `size` has of a dimension of `extent`: `ceil(extent / size)` each, as far as they go, as
/// `torch.chunk` cuts. The last parts are shorter, or empty where `torch.chunk` has none. No part is had of none: `size` 0 gives an empty range.
///
/// ```
/// use tensorhold::group::chunk;
///
/// assert_eq!([0, 1, 2, 3].map(|rank| chunk(10, rank, 4)), [0..3, 3..6, 6..9, 9..10]);
/// assert_eq!([0, 1, 2, 3].map(|rank| chunk(5, rank, 4)), [0..2, 2..4, 4..5, 5..5]);
/// ```
pub fn chunk(extent: usize, rank: usize, size: usize) -> Range<usize> {
    let length = if size == 0 { 0 } else { extent.div_ceil(size) };
    let start = length.saturating_mul(rank).min(extent);
    start..start.saturating_add(length).min(extent)
}

#[cfg(test)]
mod tests {
    use super::chunk;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_a_dimension_once_and_only_the_last_are_shorter(extent in 0_usize..1000, size in 1_usize..40) {
            let parts: Vec<_> = (0..size).map(|rank| chunk(extent, rank, size)).collect();
            prop_assert_eq!(parts[0].start, 0);
            prop_assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].len() >= pair[1].len()));
            prop_assert_eq!(parts[size - 1].end, extent);
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        assert_eq!(chunk(usize::MAX, usize::MAX, 2), usize::MAX..usize::MAX);
        assert_eq!(chunk(usize::MAX, 0, 1), 0..usize::MAX);
        assert_eq!(chunk(7, 0, 0), 0..0);
    }
}
