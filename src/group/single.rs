//! [`SingleGroup`]: a job of one process.

use super::{ProcessGroup, refused};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The group of a job of one: rank 0 of 1. What it is given for all others goes nowhere, and there is no one to receive from.
#[derive(Debug, Clone, Copy, Default)]
pub struct SingleGroup;

impl SingleGroup {
    fn alone(self, operation: &'static str, other: usize) -> Error {
        let detail = format!("got rank {other}, expected another rank, and there is none");
        refused(&self, operation, detail, "use the group of a job of several processes")
    }
}

impl ProcessGroup for SingleGroup {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn recv_broadcast(&self, _: &mut Tensor, root: usize) -> Result<()> {
        Err(self.alone("receive a broadcast", root))
    }

    fn send(&self, _: &Tensor, to: usize) -> Result<()> {
        Err(self.alone("send", to))
    }

    fn recv(&self, _: &mut Tensor, from: usize) -> Result<()> {
        Err(self.alone("receive", from))
    }
}
