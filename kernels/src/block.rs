//! [`Block`]: which elements of a tensor, and where in another they go.

use crate::error::{Error, Result};

/// An axis-aligned block of one tensor, and its place in another: runs of elements that lie side by side in both, on three levels.
///
/// Everything is in elements, so one block serves tensors of any types. Run `(i, j, k)` begins at
/// `source_offset + i * source_strides[0] + j * source_strides[1] + k * source_strides[2]`, and likewise in the target.
/// Dimensions that lie side by side in both tensors are one level, so three are enough for any block of a tensor of four dimensions, and for
/// one of any more where at most four groups of dimensions are cut.
///
/// The fields can be set at will, for steps above 1 or to repeat a run (a stride of 0 in the source); what uses a block checks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Where the first run begins in the source.
    pub source_offset: u64,
    /// Where the first run begins in the target.
    pub target_offset: u64,
    /// How many runs there are, outermost level first. None where one is 0.
    pub counts: [u64; 3],
    /// From one run to the next in the source, for each level.
    pub source_strides: [u64; 3],
    /// From one run to the next in the target, for each level.
    pub target_strides: [u64; 3],
    /// The elements of a run.
    pub run: u64,
}

/// A dimension, or several that lie side by side in both tensors.
#[derive(Clone, Copy)]
struct Level {
    count: u64,
    source_stride: u64,
    target_stride: u64,
}

impl Block {
    /// All elements of a tensor that has this many.
    pub fn whole(elements: u64) -> Self {
        Self {
            source_offset: 0,
            target_offset: 0,
            counts: [1; 3],
            source_strides: [0; 3],
            target_strides: [0; 3],
            run: elements,
        }
    }

    /// The block of `extent` that begins at index `at` of a tensor of `shape`, as a tensor of its own.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    pub fn cut(shape: &[u64], at: &[u64], extent: &[u64]) -> Result<Self> {
        Self::copy(extent, shape, at, extent, &vec![0; extent.len()])
    }

    /// The block of `extent` that begins at index `source_at` of a tensor of `source_shape`, to index `target_at` of one of `target_shape`.
    ///
    /// # Errors
    /// [`Error::Block`] when the numbers of dimensions differ, the block reaches beyond a tensor, a tensor has more than 2^64 elements, or the
    /// block has more than three levels of runs: then it has to be cut along an outer dimension into several.
    pub fn copy(
        extent: &[u64],
        source_shape: &[u64],
        source_at: &[u64],
        target_shape: &[u64],
        target_at: &[u64],
    ) -> Result<Self> {
        let source_strides = strides("source", extent, source_shape, source_at)?;
        let target_strides = strides("target", extent, target_shape, target_at)?;
        let mut block = Self {
            source_offset: offset(&source_strides, source_at)?,
            target_offset: offset(&target_strides, target_at)?,
            ..Self::whole(0)
        };
        if extent.contains(&0) {
            return Ok(block);
        }
        // From the innermost dimension outwards.
        let mut levels = vec![Level { count: 1, source_stride: 1, target_stride: 1 }];
        for ((&count, &source_stride), &target_stride) in
            extent.iter().zip(&source_strides).zip(&target_strides).rev()
        {
            let Some(inner) = levels.last_mut() else { break };
            let joins = |stride: u64, inner: u64, count: u64| inner.checked_mul(count) == Some(stride);
            if count == 1 {
                continue;
            }
            if joins(source_stride, inner.source_stride, inner.count)
                && joins(target_stride, inner.target_stride, inner.count)
            {
                inner.count = product(inner.count, count)?;
            } else {
                levels.push(Level { count, source_stride, target_stride });
            }
        }
        let Some((run, outer)) = levels.split_first().filter(|(_, outer)| outer.len() <= 3) else {
            let detail = format!(
                "{} levels of runs, expected at most 3: cut the block along its outermost dimension",
                levels.len() - 1
            );
            return Err(Error::Block { operation: "describe a block", detail });
        };
        block.run = run.count;
        for (n, level) in outer.iter().enumerate() {
            block.counts[2 - n] = level.count;
            block.source_strides[2 - n] = level.source_stride;
            block.target_strides[2 - n] = level.target_stride;
        }
        Ok(block)
    }

    /// How many elements it has.
    ///
    /// # Errors
    /// [`Error::Block`] when they are more than 2^64.
    pub fn elements(&self) -> Result<u64> {
        product(self.runs()?, self.run)
    }

    /// How many runs it has.
    pub(crate) fn runs(&self) -> Result<u64> {
        self.counts.iter().try_fold(1, |runs, &count| product(runs, count))
    }

    /// Checks it against tensors of that many bytes, given with the size of their elements; says how many elements it has.
    pub(crate) fn check(
        &self,
        operation: &'static str,
        source: (u64, usize),
        target: (u64, usize),
    ) -> Result<u64> {
        let elements = self.elements()?;
        for (what, (bytes, size)) in [("source", source), ("target", target)] {
            if size == 0 || !bytes.is_multiple_of(size as u64) {
                let expected = format!("a multiple of {size}, the size of an element");
                return Err(Error::Length { operation, what, got: bytes, expected });
            }
        }
        if elements == 0 {
            return Ok(0);
        }
        for (what, (bytes, size), offset, strides) in [
            ("source", source, self.source_offset, self.source_strides),
            ("target", target, self.target_offset, self.target_strides),
        ] {
            let there = bytes / size as u64;
            let end = self.counts.iter().zip(strides).try_fold(offset, |end, (&count, stride)| {
                end.checked_add(count.saturating_sub(1).checked_mul(stride)?)
            });
            if end.and_then(|end| end.checked_add(self.run)).is_none_or(|end| end > there) {
                let detail = format!("{self:?} reaches beyond the {there} elements of the {what}");
                return Err(Error::Block { operation, detail });
            }
        }
        self.check_apart(operation)?;
        Ok(elements)
    }

    /// No two runs overlap in the target: each level steps over all of those that step less.
    fn check_apart(&self, operation: &'static str) -> Result<()> {
        let mut levels: Vec<(u64, u64)> =
            self.target_strides.into_iter().zip(self.counts).filter(|&(_, count)| count > 1).collect();
        levels.sort_unstable();
        let mut span = self.run;
        for (stride, count) in levels {
            if stride < span {
                let detail =
                    format!("runs overlap in the target: a level steps by {stride} elements over {span}");
                return Err(Error::Block { operation, detail });
            }
            span = span.saturating_add(stride.saturating_mul(count - 1));
        }
        Ok(())
    }

    /// Gives each run's bytes, in the source and in the target, which are slices of elements of those sizes.
    pub(crate) fn each_run(
        &self,
        operation: &'static str,
        (source, source_size): (&[u8], usize),
        (target, target_size): (&mut [u8], usize),
        mut give: impl FnMut(&[u8], &mut [u8]),
    ) -> Result<()> {
        let elements =
            self.check(operation, (source.len() as u64, source_size), (target.len() as u64, target_size))?;
        if elements == 0 {
            return Ok(());
        }
        // All of it lies within the slices, so it fits a usize.
        let at = |offset: u64, strides: &[u64; 3], [i, j, k]: [u64; 3]| {
            (offset + i * strides[0] + j * strides[1] + k * strides[2]) as usize
        };
        let run = self.run as usize;
        for i in 0..self.counts[0] {
            for j in 0..self.counts[1] {
                for k in 0..self.counts[2] {
                    let from = at(self.source_offset, &self.source_strides, [i, j, k]) * source_size;
                    let to = at(self.target_offset, &self.target_strides, [i, j, k]) * target_size;
                    give(&source[from..from + run * source_size], &mut target[to..to + run * target_size]);
                }
            }
        }
        Ok(())
    }
}

fn product(a: u64, b: u64) -> Result<u64> {
    a.checked_mul(b).ok_or_else(|| Error::Block {
        operation: "describe a block",
        detail: format!("{a} times {b} elements are more than a tensor can have"),
    })
}

/// The distances, in elements, between neighbours of each dimension; the block is checked to lie within the tensor.
fn strides(what: &str, extent: &[u64], shape: &[u64], at: &[u64]) -> Result<Vec<u64>> {
    let wrong = |detail| Err(Error::Block { operation: "describe a block", detail });
    if shape.len() != extent.len() || at.len() != extent.len() {
        return wrong(format!(
            "the {what} has {} dimensions and {} indices, expected {}",
            shape.len(),
            at.len(),
            extent.len()
        ));
    }
    for (n, ((&extent, &at), &there)) in extent.iter().zip(at).zip(shape).enumerate() {
        if at.checked_add(extent).is_none_or(|end| end > there) {
            return wrong(format!(
                "dimension {n} of the {what} has {there} elements, expected at least {at} + {extent}"
            ));
        }
    }
    let mut strides = vec![1; shape.len()];
    let mut stride = 1;
    for (n, &count) in shape.iter().enumerate().rev() {
        strides[n] = stride;
        stride = product(stride, count)?;
    }
    Ok(strides)
}

fn offset(strides: &[u64], at: &[u64]) -> Result<u64> {
    strides.iter().zip(at).try_fold(0_u64, |offset, (&stride, &at)| {
        // Below the number of elements, where the tensor has any.
        Ok(offset.saturating_add(product(stride, at)?))
    })
}
