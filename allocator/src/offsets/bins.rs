//! Size classes: each power of two is divided into 32 classes of equal width, so the sizes in a class differ by at
//! most 1/32. Two levels of bitmaps find the next class that is not empty in a few instructions.
//!
//! The two-level scheme is that of TLSF (Masmano, Ripoll, Crespo and Real, "TLSF: a new dynamic memory allocator for
//! real-time systems", ECRTS 2004).

/// log2 of the number of classes in a power of two.
const SUBCLASS_BITS: u32 = 5;
const SUBCLASSES: usize = 1 << SUBCLASS_BITS;
/// Sizes below 32 share the first row, one class for each; then one row for each power of two up to 2^63.
const ROWS: usize = 64 - SUBCLASS_BITS as usize + 1;

/// How many classes there are.
pub(super) const CLASSES: usize = ROWS * SUBCLASSES;

/// The class of a size. Classes ascend with sizes.
#[inline]
pub(super) const fn class_of(size: u64) -> usize {
    // Below the highest bit, 5 bits are the column. That bit itself makes the row one more, but for the first row,
    // where sizes are classes of their own.
    let shift = shift_of(size);
    ((shift as usize) << SUBCLASS_BITS) + (size >> shift) as usize
}

/// How far a size is shifted to the right so that its class shows.
#[inline]
const fn shift_of(size: u64) -> u32 {
    (size | SUBCLASSES as u64).ilog2() - SUBCLASS_BITS
}

/// Whether two sizes are in one class, which is quicker to tell than which.
#[inline]
pub(super) const fn same_class(a: u64, b: u64) -> bool {
    // The highest bit and the 5 below it decide; 32 stands for the sizes that are classes of their own.
    let shift = shift_of(a);
    a >> shift == b >> shift
}

/// Which classes are not empty.
#[derive(Debug, Clone)]
pub(super) struct Occupied {
    /// Bit `r`: `columns[r]` is not 0.
    rows: u64,
    columns: [u32; ROWS],
}

impl Occupied {
    pub(super) const fn new() -> Self {
        Self { rows: 0, columns: [0; ROWS] }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    #[inline]
    pub(super) fn insert(&mut self, class: usize) {
        let (row, column) = (class / SUBCLASSES, class % SUBCLASSES);
        self.columns[row] |= 1 << column;
        self.rows |= 1 << row;
    }

    #[inline]
    pub(super) fn remove(&mut self, class: usize) {
        let (row, column) = (class / SUBCLASSES, class % SUBCLASSES);
        self.columns[row] &= !(1 << column);
        if self.columns[row] == 0 {
            self.rows &= !(1 << row);
        }
    }

    /// The first class from `class` on that is not empty.
    #[inline]
    pub(super) fn next(&self, class: usize) -> Option<usize> {
        if class >= CLASSES {
            return None;
        }
        let (row, column) = (class / SUBCLASSES, class % SUBCLASSES);
        let here = self.columns[row] & (u32::MAX << column);
        if here != 0 {
            return Some(row * SUBCLASSES + here.trailing_zeros() as usize);
        }
        let above = self.rows.checked_shr(row as u32 + 1).filter(|&rows| rows != 0)?;
        let row = row + 1 + above.trailing_zeros() as usize;
        Some(row * SUBCLASSES + self.columns[row].trailing_zeros() as usize)
    }

    /// The last class that is not empty.
    pub(super) fn last(&self) -> Option<usize> {
        let row = self.rows.checked_ilog2()? as usize;
        Some(row * SUBCLASSES + self.columns[row].ilog2() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_ascend_with_sizes_and_are_at_most_a_32nd_wide() {
        let mut sizes: Vec<u64> = (0..=4096).collect();
        sizes.extend((12..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1, 3 << (bit - 1)]));
        sizes.push(u64::MAX);
        sizes.sort_unstable();
        assert!(sizes.is_sorted_by_key(|&size| class_of(size)));
        assert!(class_of(u64::MAX) < CLASSES);
        for pair in sizes.windows(2) {
            let same = class_of(pair[0]) == class_of(pair[1]);
            assert_eq!(
                (same_class(pair[0], pair[1]), same_class(pair[1], pair[0])),
                (same, same),
                "{pair:?}"
            );
        }
        for pair in sizes.windows(2).filter(|pair| class_of(pair[0]) == class_of(pair[1])) {
            assert!(pair[1] - pair[0] <= pair[0] / 32);
        }
    }

    #[test]
    fn the_next_and_last_occupied_classes_are_found() {
        let mut occupied = Occupied::new();
        assert_eq!((occupied.next(0), occupied.last()), (None, None));
        for class in [3, 40, 41, 1000, CLASSES - 1] {
            occupied.insert(class);
        }
        assert_eq!(
            [0, 3, 4, 41, 42, 1001, CLASSES].map(|class| occupied.next(class)),
            [Some(3), Some(3), Some(40), Some(41), Some(1000), Some(CLASSES - 1), None]
        );
        assert_eq!(occupied.last(), Some(CLASSES - 1));
        occupied.remove(CLASSES - 1);
        occupied.remove(40);
        assert_eq!((occupied.last(), occupied.next(4)), (Some(1000), Some(41)));
    }
}
