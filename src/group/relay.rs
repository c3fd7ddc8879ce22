//! [`Relay`]: tensors of all ranks, one after the other, as their owners come to have them.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use tensorhold_allocator::{Pool, Quoted};

use super::memory::Place;
use super::{ProcessGroup, Ranks, refused};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::{Tensor, TensorInfo};

/// Tensors in an order that is the same on every rank, each broadcast by the rank that has it when its turn comes: an iterator that gives every rank
/// every tensor.
///
/// A rank's own tensors come from an iterator of its own, such as the batches of a load, so no rank holds more than it reads ahead. All
/// ranks advance together (K1): one that stops early stops the others. After an error there are no more.
pub struct Relay<I> {
    group: Arc<dyn ProcessGroup>,
    place: Place,
    order: std::vec::IntoIter<(TensorInfo, usize)>,
    local: I,
}

impl<I: Iterator<Item = Result<Tensor>>> Relay<I> {
    /// Tensors in this order, each with the rank that has it; and this rank's, in the same order. What comes from others is placed in the pool, which is
    /// over the device's memory.
    ///
    /// # Errors
    /// When an info's bytes are not those of its type and shape, an owner is no rank, or the pool is over other memory.
    pub fn new(
        group: Arc<dyn ProcessGroup>,
        device: &Device,
        pool: &Pool,
        order: Vec<(TensorInfo, usize)>,
        local: I,
    ) -> Result<Self> {
        let place = Place::new(&*group, Ranks::of(&*group)?, device, pool)?;
        order.iter().try_for_each(|(info, _)| info.check("relay"))?;
        if let Some((info, owner)) = order.iter().find(|(_, owner)| *owner >= place.ranks.size) {
            let detail =
                format!("tensor {} is said to be on rank {owner}, which there is not", Quoted(&info.name));
            return Err(refused(&*group, "relay tensors", detail, "count ranks from 0"));
        }
        Ok(Self::of(group, place, order, local))
    }

    pub(super) fn of(
        group: Arc<dyn ProcessGroup>,
        place: Place,
        order: Vec<(TensorInfo, usize)>,
        local: I,
    ) -> Self {
        Self { group, place, order: order.into_iter(), local }
    }

    /// The next tensor of this rank's own, which is to be the one of that name.
    fn own(&mut self, info: &TensorInfo) -> Result<Tensor> {
        let found = self.local.next().transpose()?;
        match found {
            Some(tensor) if tensor.info().is_like(info) => {
                self.place.check(tensor.view(), "relay tensors", &*self.group)?;
                Ok(tensor)
            }
            found => {
                let found = found.map_or("none".into(), |tensor| format!("{:?}", tensor.view()));
                let detail = format!(
                    "got {found} of this rank's tensors, expected {}, {}",
                    Quoted(&info.name),
                    info.spelled()
                );
                Err(refused(&*self.group, "relay tensors", detail, "give every rank the same order"))
            }
        }
    }

    fn give(&mut self, info: TensorInfo, owner: usize) -> Result<Tensor> {
        if owner == self.place.own() {
            let tensor = self.own(&info)?;
            self.group.broadcast(&tensor)?;
            return Ok(tensor);
        }
        self.place.receive(&*self.group, info, |tensor| self.group.recv_broadcast(tensor, owner))
    }
}

impl TensorInfo {
    /// Whether they are of one name, type and shape.
    pub(super) fn is_like(&self, other: &TensorInfo) -> bool {
        (&self.name, self.dtype, &self.shape) == (&other.name, other.dtype, &other.shape)
    }
}

impl<I: Iterator<Item = Result<Tensor>>> Iterator for Relay<I> {
    type Item = Result<Tensor>;

    fn next(&mut self) -> Option<Result<Tensor>> {
        let (info, owner) = self.order.next()?;
        let given = self.give(info, owner);
        if given.is_err() {
            self.order = Vec::new().into_iter();
        }
        Some(given)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.order.size_hint()
    }
}

impl<I: Iterator<Item = Result<Tensor>>> FusedIterator for Relay<I> {}

impl<I> fmt::Debug for Relay<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("group", &self.group)
            .field("left", &self.order.len())
            .finish_non_exhaustive()
    }
}
