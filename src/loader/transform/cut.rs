//! [`Cut`]: a part of a tensor along one dimension.

use std::ops::Range;

use crate::error::{Error, Remedy, Result};
use crate::group::chunk;
use crate::tensor::TensorInfo;

/// A part of a tensor along one dimension. Several cuts are applied in order, each to the result of the one
/// before.
///
/// ```
/// use tensorhold::{Cut, Device, Loader};
///
/// // The second of eight parts of every projection, by rows or by columns.
/// let loader = Loader::new(Device::host()).cut_by(|tensor| {
///     let by_columns = tensor.name.ends_with("o_proj.weight") || tensor.name.ends_with("down_proj.weight");
///     (tensor.shape.len() == 2).then_some(Cut::shard(usize::from(by_columns), 1, 8))
/// });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cut {
    dim: usize,
    kind: CutKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CutKind {
    Narrow { start: usize, length: usize },
    Shard { rank: usize, world: usize, sizes: ShardSizes },
}

/// How a dimension is divided into shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ShardSizes {
    Equal,
    AsChunks,
}

impl Cut {
    /// `length` elements of dimension `dim`, from `start` on.
    pub fn narrow(dim: usize, start: usize, length: usize) -> Self {
        Self { dim, kind: CutKind::Narrow { start, length } }
    }

    /// Part `rank` of `world` parts of dimension `dim`, all of the same length. A dimension that `world` does
    /// not divide is an error of the load.
    pub fn shard(dim: usize, rank: usize, world: usize) -> Self {
        Self { dim, kind: CutKind::Shard { rank, world, sizes: ShardSizes::Equal } }
    }

    /// Part `rank` of `world` parts of dimension `dim`, divided as by torch's `chunk`: each part has the
    /// length of the dimension over `world`, rounded up, except the last ones, which are shorter. If `chunk`
    /// makes fewer than `world` parts, the others are empty.
    pub fn chunk(dim: usize, rank: usize, world: usize) -> Self {
        Self { dim, kind: CutKind::Shard { rank, world, sizes: ShardSizes::AsChunks } }
    }

    /// The dimension, and the range of it that the cut selects. `shape` is the tensor's shape after the cuts
    /// before this one.
    ///
    /// # Errors
    /// When the dimension or the range does not exist.
    pub(crate) fn of(&self, info: &TensorInfo, shape: &[usize]) -> Result<(usize, Range<usize>)> {
        let wrong = |got, expected, remedy| {
            let operation = self.operation();
            Err(Error::Tensor { operation, name: info.name.to_string(), got, expected, remedy })
        };
        let Some(&there) = shape.get(self.dim) else {
            let expected = match shape.len() {
                0 => "no cut of a scalar".to_owned(),
                dims => format!("a dimension below {dims}, of {shape:?}"),
            };
            return wrong(
                format!("dimension {}", self.dim),
                expected,
                "count dimensions from 0, outermost first".into(),
            );
        };
        let range = match self.kind {
            CutKind::Narrow { start, length } => match start.checked_add(length) {
                Some(end) if end <= there => start..end,
                _ => {
                    let got = format!("{length} elements from {start} on");
                    let expected = format!("at most the {there} of dimension {}", self.dim);
                    return wrong(got, expected, "name a part that it has".into());
                }
            },
            CutKind::Shard { world: 0, .. } => {
                let remedy = "pass how many ranks there are".into();
                return wrong("a world of 0".into(), "a world of 1 or more".into(), remedy);
            }
            CutKind::Shard { rank, world, .. } if rank >= world => {
                let remedy = "count ranks from 0".into();
                return wrong(format!("rank {rank}"), format!("a rank below the world's {world}"), remedy);
            }
            CutKind::Shard { world, sizes: ShardSizes::Equal, .. } if !there.is_multiple_of(world) => {
                let got = format!("{world} parts of {there} elements of dimension {}", self.dim);
                let expected = "a number that divides them".to_owned();
                return wrong(got, expected, Remedy::CHUNK);
            }
            CutKind::Shard { rank, world, .. } => chunk(there, rank, world),
        };
        Ok((self.dim, range))
    }

    fn operation(&self) -> &'static str {
        match self.kind {
            CutKind::Narrow { .. } => "narrow",
            CutKind::Shard { sizes: ShardSizes::Equal, .. } => "shard",
            CutKind::Shard { sizes: ShardSizes::AsChunks, .. } => "chunk",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::dtype::DType;

    fn info() -> TensorInfo {
        let shape = vec![5, 12].into();
        TensorInfo { name: "t".into(), dtype: DType::F32, shape, nbytes: 240, file: Path::new("f").into() }
    }

    fn of(cut: Cut) -> std::result::Result<Range<usize>, String> {
        let info = info();
        cut.of(&info, &info.shape).map(|(_, range)| range).map_err(|error| error.to_string())
    }

    #[test]
    fn shards_are_equal_and_chunks_are_those_of_torch() {
        assert_eq!(of(Cut::shard(1, 3, 4)), Ok(9..12));
        assert_eq!(of(Cut::narrow(0, 2, 3)), Ok(2..5));
        assert_eq!(of(Cut::narrow(0, 5, 0)), Ok(5..5));
        // torch.arange(5).chunk(4) has three parts.
        let chunks: Vec<_> = (0..4).map(|rank| of(Cut::chunk(0, rank, 4)).unwrap()).collect();
        assert_eq!(chunks, [0..2, 2..4, 4..5, 5..5]);
        let chunks: Vec<_> = (0..2).map(|rank| of(Cut::chunk(0, rank, 2)).unwrap()).collect();
        assert_eq!(chunks, [0..3, 3..5]);
    }

    #[test]
    fn a_part_that_is_not_there_is_an_error_that_says_what_is() {
        let cases = [
            (
                Cut::shard(0, 1, 2),
                ["shard of tensor \"t\"", "2 parts of 5 elements of dimension 0", "Cut::chunk()"],
            ),
            (Cut::shard(1, 4, 4), ["rank 4", "below the world's 4", "from 0"]),
            (Cut::chunk(1, 0, 0), ["chunk of tensor", "got a world of 0", "a world of 1 or more"]),
            (Cut::shard(1, 0, 0), ["shard of tensor", "got a world of 0", "how many ranks"]),
            (Cut::chunk(1, 2, 2), ["chunk of tensor", "rank 2", "below the world's 2"]),
            (Cut::shard(2, 0, 1), ["dimension 2", "a dimension below 2, of [5, 12]", "outermost first"]),
            (
                Cut::narrow(0, 3, 3),
                ["narrow of tensor", "3 elements from 3 on", "at most the 5 of dimension 0"],
            ),
            (Cut::narrow(0, usize::MAX, 2), ["narrow of tensor", "elements from", "at most the 5"]),
        ];
        for (cut, expected) in cases {
            let message = of(cut).unwrap_err();
            assert!(expected.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
