//! [`check`]: what every process group has to pass.

use std::path::Path;

use tensorhold_allocator::Pool;

use super::memory::Place;
use super::{ProcessGroup, Ranks, refused};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::{Tensor, TensorInfo};

/// Lengths in bytes: none, fewer than a word, not a multiple of one, a page, and more than what is moved at once.
const LENGTHS: [usize; 6] = [0, 1, 7, 256, 4097, 300_001];

/// Checks a group against what [`ProcessGroup`] promises, with tensors on `device`. All ranks call it, each with its own device: it returns when
/// every rank has. Needs about 1 MB of the device's memory for each rank.
///
/// # Errors
/// That of the first promise that does not hold.
pub fn check(group: &dyn ProcessGroup, device: &Device) -> Result<()> {
    let pool = Pool::builder(device.memory()).name("group check").build()?;
    let ranks = Ranks::of(group)?;
    let checker = Checker { group, ranks, place: Place::new(group, ranks, device, &pool)? };
    group.barrier()?;
    checker.impossible_ranks_are_refused()?;
    for root in 0..ranks.size {
        for length in LENGTHS {
            checker.broadcasts_arrive(root, length)?;
            checker.parts_of_any_lengths_arrive(root, length)?;
        }
    }
    checker.sends_arrive_in_order()?;
    checker.tensors_go_round()?;
    group.barrier()
}

struct Checker<'a> {
    group: &'a dyn ProcessGroup,
    ranks: Ranks,
    place: Place,
}

impl Checker<'_> {
    fn expect(&self, operation: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Result<()> {
        let remedy = "correct the group's implementation";
        if holds { Ok(()) } else { Err(refused(self.group, operation, detail(), remedy)) }
    }

    /// Bytes that depend on the seed and on their positions.
    fn bytes(seed: usize, length: usize) -> Vec<u8> {
        (0..length).map(|n| (n ^ (n >> 8).wrapping_mul(31) ^ seed.wrapping_mul(97)) as u8).collect()
    }

    fn tensor(&self, bytes: &[u8]) -> Result<Tensor> {
        let (file, shape) = (Path::new("").into(), [bytes.len()][..].into());
        let nbytes = bytes.len() as u64;
        let info = TensorInfo { name: "check".into(), dtype: DType::U8, shape, nbytes, file };
        self.place.upload(info, bytes.to_vec())
    }

    /// Receives so many bytes, over others, and compares them.
    fn receive(
        &self,
        operation: &'static str,
        expected: &[u8],
        receive: impl FnOnce(&mut Tensor) -> Result<()>,
    ) -> Result<()> {
        let mut tensor = self.tensor(&vec![0xa5; expected.len()])?;
        receive(&mut tensor)?;
        let got = tensor.to_host()?;
        let differs = got.iter().zip(expected).position(|(got, expected)| got != expected);
        self.expect(operation, differs.is_none(), || {
            format!("of {} bytes, byte {} differs from what was sent", got.len(), differs.unwrap_or(0))
        })
    }

    fn impossible_ranks_are_refused(&self) -> Result<()> {
        let (group, mut tensor) = (self.group, self.tensor(&[1])?);
        for rank in [self.ranks.own, self.ranks.size, usize::MAX] {
            let refused = |operation, result: Result<()>| {
                self.expect(operation, result.is_err(), || format!("rank {rank} was not refused"))
            };
            refused("send", group.send(&tensor, rank))?;
            refused("receive", group.recv(&mut tensor, rank))?;
            refused("receive a broadcast", group.recv_broadcast(&mut tensor, rank))?;
            refused("receive a part", group.recv_scatter(&mut tensor, rank))?;
        }
        self.expect("scatter", group.scatter(&[]).is_err(), || "no parts were not refused".into())
    }

    fn broadcasts_arrive(&self, root: usize, length: usize) -> Result<()> {
        let bytes = Self::bytes(root, length);
        if self.ranks.own == root {
            return self.group.broadcast(&self.tensor(&bytes)?);
        }
        self.receive("receive a broadcast", &bytes, |into| self.group.recv_broadcast(into, root))
    }

    /// Each rank's part is shorter than the one before, and the last has none.
    fn parts_of_any_lengths_arrive(&self, root: usize, length: usize) -> Result<()> {
        let Ranks { own, size } = self.ranks;
        let part = |rank: usize| Self::bytes(root + 5 * rank, length * (size - 1 - rank) / size);
        if own == root {
            let parts = (0..size).map(|rank| self.tensor(&part(rank))).collect::<Result<Vec<_>>>()?;
            return self.group.scatter(&parts);
        }
        self.receive("receive a part", &part(own), |into| self.group.recv_scatter(into, root))
    }

    /// Rank 0 sends to each other rank, twice.
    fn sends_arrive_in_order(&self) -> Result<()> {
        let bytes = |rank: usize, turn: usize| Self::bytes(rank + turn, 1000 + 9 * turn);
        for turn in 0..2 {
            if self.ranks.own > 0 {
                let expected = bytes(self.ranks.own, turn);
                self.receive("receive", &expected, |into| self.group.recv(into, 0))?;
                continue;
            }
            for to in 1..self.ranks.size {
                self.group.send(&self.tensor(&bytes(to, turn))?, to)?;
            }
        }
        Ok(())
    }

    /// From rank to rank, until the first has it back.
    fn tensors_go_round(&self) -> Result<()> {
        let (Ranks { own: rank, size }, bytes) = (self.ranks, Self::bytes(77, 5000));
        if size == 1 {
            return Ok(());
        }
        let (before, after) = ((rank + size - 1) % size, (rank + 1) % size);
        if rank > 0 {
            self.receive("receive", &bytes, |into| self.group.recv(into, before))?;
        }
        self.group.send(&self.tensor(&bytes)?, after)?;
        if rank == 0 {
            self.receive("receive", &bytes, |into| self.group.recv(into, before))?;
        }
        Ok(())
    }
}
