//! Process groups: tensors that one rank has read, on every rank that needs them.
//!
//! A [`ProcessGroup`] moves bytes between the ranks of a job; this crate has [`SingleGroup`], for a job of one, and the Python
//! package one over `torch.distributed`. [`Shared`] knows which rank has which tensor and gives each whole
//! ([`broadcast`](Shared::broadcast)), in parts ([`shard`](Shared::shard)) or to one rank ([`push`](Shared::push)); a [`Relay`]
//! gives all tensors to all ranks, one after the other.
//!
//! # Bring your own
//! Implement the trait, and call [`check`] on every rank: it says what is not as promised.
//!
//! # Invariants
//! - **K1 Every rank makes the same calls in the same order.** All calls but [`send`](ProcessGroup::send) and
//!   [`recv`](ProcessGroup::recv) are collective. A rank that leaves one out stops the others.
//! - **K2 A call returns when its bytes have moved**: what was sent may be dropped, what was received can be read on any stream (I3).

mod agree;
mod check;
mod chunk;
mod memory;
mod relay;
mod shared;
mod single;

use std::fmt;

use crate::error::{Error, Remedy, Result};
use crate::tensor::Tensor;

pub use self::agree::agree;
pub use self::check::check;
pub use self::chunk::chunk;
pub use self::relay::Relay;
pub use self::shared::Shared;
pub use self::single::SingleGroup;

/// The ranks of a job, and what moves bytes between them.
///
/// Tensors are moved as bytes: their types and shapes are not looked at, but for their length. They lie in host memory or on the
/// rank's device; `as_ptr`, `device` and, in host memory, `as_bytes` tell where. What is received into has no other owner when it is given: its
/// `get_mut` gives the memory to write to. A tensor of 0 bytes takes part in a collective call as any other.
///
/// They are owners, not views, so that a group which hands memory on to a library that counts references can do so safely: what such a library still
/// holds when the call returns stays valid, and keeps its memory.
///
/// Calls come from one thread at a time, and block (K2). Ranks are counted from 0.
///
/// The trait is safe to implement: a group that breaks a promise makes wrong tensors or errors, and no wrong access to memory. What it says of its ranks is
/// asked once, and what it receives into is checked to be what it was given.
pub trait ProcessGroup: Send + Sync + fmt::Debug {
    /// This rank, below [`size`](Self::size).
    fn rank(&self) -> usize;

    /// How many ranks there are, at least 1.
    fn size(&self) -> usize;

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// When the group fails.
    fn barrier(&self) -> Result<()>;

    /// Gives a tensor to every other rank, which calls [`recv_broadcast`](Self::recv_broadcast).
    ///
    /// # Errors
    /// When the group fails.
    fn broadcast(&self, tensor: &Tensor) -> Result<()>;

    /// Receives what rank `root` broadcasts, as long as `into` is.
    ///
    /// # Errors
    /// When `root` is this rank or none, or the group fails.
    fn recv_broadcast(&self, into: &mut Tensor, root: usize) -> Result<()>;

    /// Gives each other rank its part, `parts[rank]`; each calls [`recv_scatter`](Self::recv_scatter). There is a part for each rank, this
    /// one included, whose part stays where it is. Parts may differ in length.
    ///
    /// The default sends them one after the other.
    ///
    /// # Errors
    /// When there is not one part for each rank, or the group fails.
    fn scatter(&self, parts: &[Tensor]) -> Result<()> {
        if parts.len() != self.size() {
            let detail = format!("got {} parts, expected one for each rank", parts.len());
            return Err(refused(self, "scatter", detail, "give as many parts as there are ranks"));
        }
        let others = parts.iter().enumerate().filter(|(rank, _)| *rank != self.rank());
        others.into_iter().try_for_each(|(rank, part)| self.send(part, rank))
    }

    /// Receives this rank's part of what rank `root` scatters, as long as `into` is.
    ///
    /// # Errors
    /// When `root` is this rank or none, or the group fails.
    fn recv_scatter(&self, into: &mut Tensor, root: usize) -> Result<()> {
        self.recv(into, root)
    }

    /// Gives a tensor to one other rank, which calls [`recv`](Self::recv).
    ///
    /// # Errors
    /// When `to` is this rank or none, or the group fails.
    fn send(&self, tensor: &Tensor, to: usize) -> Result<()>;

    /// Receives what another rank sends, as long as `into` is.
    ///
    /// # Errors
    /// When `from` is this rank or none, or the group fails.
    fn recv(&self, into: &mut Tensor, from: usize) -> Result<()>;
}

/// What a group has said of its ranks, once: the trait is safe, and may say something else the next time (I7).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranks {
    /// Below the size.
    pub(crate) own: usize,
    /// 1 to [`MAX_RANKS`].
    pub(crate) size: usize,
}

/// More than any job has. A part is described for each.
const MAX_RANKS: usize = 1 << 20;

impl Ranks {
    /// Asks a group.
    ///
    /// # Errors
    /// When it does not know its ranks.
    pub(crate) fn of(group: &dyn ProcessGroup) -> Result<Self> {
        let (own, size) = (group.rank(), group.size());
        if own < size && size <= MAX_RANKS {
            return Ok(Self { own, size });
        }
        Err(Error::Group {
            operation: "know the ranks",
            rank: own,
            size,
            detail: format!("expected a rank below the size, and a size of 1 to {MAX_RANKS}"),
            remedy: "correct the group's implementation".into(),
        })
    }
}

/// The error of a group that cannot do as asked.
fn refused<G: ProcessGroup + ?Sized>(
    group: &G,
    operation: &'static str,
    detail: impl Into<String>,
    remedy: impl Into<Remedy>,
) -> Error {
    Error::Group {
        operation,
        rank: group.rank(),
        size: group.size(),
        detail: detail.into(),
        remedy: remedy.into(),
    }
}
