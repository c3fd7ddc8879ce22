//! Random blocks, and what copying one means, element by element.

use proptest::prelude::*;
use tensorhold_kernels::Block;

/// A dimension: the block's extent, and what lies before and behind it in the source and in the target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dimension {
    pub(crate) extent: u64,
    source: (u64, u64),
    target: (u64, u64),
}

/// A block of a tensor of up to four dimensions, to another. Often whole along a dimension, so that levels join.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) dimensions: Vec<Dimension>,
}

/// Cases, the innermost dimension up to `innermost` elements long.
pub(crate) fn cases(innermost: u64) -> impl Strategy<Value = Case> {
    let around = || prop_oneof![3 => Just((0, 0)), 1 => Just((0, 1)), 2 => (0..5_u64, 0..5_u64), 1 => (0..70_u64, 0..70_u64)];
    let dimension = move |extent: std::ops::RangeInclusive<u64>| {
        (extent, around(), around()).prop_map(|(extent, source, target)| Dimension { extent, source, target })
    };
    let outer = proptest::collection::vec(dimension(0..=6), 0..=3);
    let inner =
        prop_oneof![1 => 0..=3_u64, 2 => 0..=innermost, 1 => (0..=innermost / 16).prop_map(|n| n * 16)];
    let inner =
        (inner, around(), around()).prop_map(|(extent, source, target)| Dimension { extent, source, target });
    (outer, inner).prop_map(|(mut dimensions, inner)| {
        dimensions.push(inner);
        Case { dimensions }
    })
}

impl Case {
    fn list(&self, of: impl Fn(&Dimension) -> u64) -> Vec<u64> {
        self.dimensions.iter().map(of).collect()
    }

    pub(crate) fn source_shape(&self) -> Vec<u64> {
        self.list(|d| d.source.0 + d.extent + d.source.1)
    }

    pub(crate) fn target_shape(&self) -> Vec<u64> {
        self.list(|d| d.target.0 + d.extent + d.target.1)
    }

    pub(crate) fn source_elements(&self) -> usize {
        self.source_shape().iter().product::<u64>() as usize
    }

    pub(crate) fn target_elements(&self) -> usize {
        self.target_shape().iter().product::<u64>() as usize
    }

    pub(crate) fn block(&self) -> Block {
        Block::copy(
            &self.list(|d| d.extent),
            &self.source_shape(),
            &self.list(|d| d.source.0),
            &self.target_shape(),
            &self.list(|d| d.target.0),
        )
        .unwrap()
    }

    /// Index by index: the numbers of each element of the block in source and target.
    pub(crate) fn elements(&self) -> Vec<(usize, usize)> {
        let (source, target) = (self.source_shape(), self.target_shape());
        let mut found = vec![(0_u64, 0_u64)];
        for (n, d) in self.dimensions.iter().enumerate() {
            let next = found.iter().flat_map(|&(from, to)| (0..d.extent).map(move |i| (from, to, i)));
            found = next
                .map(|(from, to, i)| (from * source[n] + d.source.0 + i, to * target[n] + d.target.0 + i))
                .collect();
        }
        found.into_iter().map(|(from, to)| (from as usize, to as usize)).collect()
    }

    /// What the target becomes when each element is taken through `change`.
    pub(crate) fn expected(
        &self,
        (source, source_size): (&[u8], usize),
        (target, target_size): (&[u8], usize),
        change: impl Fn(&[u8], &mut [u8]),
    ) -> Vec<u8> {
        let mut expected = target.to_vec();
        for (from, to) in self.elements() {
            let from = &source[from * source_size..][..source_size];
            change(from, &mut expected[to * target_size..][..target_size]);
        }
        expected
    }
}

/// Bytes that differ from their neighbours.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}
