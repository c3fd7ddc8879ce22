//! [`Shared`]: tensors that the ranks of a group have read between them.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tensorhold_allocator::{Pool, Quoted};

use super::memory::{Part, Place};
use super::{ProcessGroup, Ranks, Relay, chunk, refused};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorInfo};

/// Tensors of a checkpoint whose files the ranks of a group have read between them, for each rank to have as it needs them.
///
/// Every method that takes a name but [`info`](Self::info), [`owner`](Self::owner) and [`local`](Self::local) is collective: all ranks call it, with
/// the same arguments, in the same order (K1). What it returns owns its own memory, in this rank's pool, and stays when this goes.
///
/// ```
/// use std::sync::Arc;
/// use tensorhold::group::{Shared, SingleGroup};
/// use tensorhold::{Device, Loader};
/// # let folder = tempfile::tempdir().unwrap();
/// # let file = folder.path().join("model.safetensors");
/// # let header = r#"{"w":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]}}"#;
/// # std::fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1, 2, 3, 4][..]].concat()).unwrap();
///
/// // On a rank of many, a group of theirs; here, of one.
/// let shared = Loader::new(Device::host()).files([file]).load_shared(Arc::new(SingleGroup))?;
/// assert_eq!(shared.shard("w", 1)?.to_host()?, [1, 2, 3, 4]); // the columns of this rank
/// # Ok::<(), tensorhold::Error>(())
/// ```
pub struct Shared {
    group: Arc<dyn ProcessGroup>,
    place: Place,
    entries: Vec<Entry>,
    by_name: HashMap<Arc<str>, usize>,
}

/// A tensor, and who has it.
struct Entry {
    info: TensorInfo,
    owner: usize,
    /// On its owner.
    tensor: Option<Tensor>,
}

impl Shared {
    /// The tensors of all ranks, each with the rank that has it, in an order that is the same on every rank; and those that this rank has. What comes
    /// from others is placed in the pool, which is over the device's memory.
    ///
    /// # Errors
    /// When an info's bytes are not those of its type and shape, an owner is no rank, a name comes twice, or this rank's tensors are not those that it is said to have, or not in the device's memory.
    pub fn new(
        group: Arc<dyn ProcessGroup>,
        device: &Device,
        pool: &Pool,
        tensors: impl IntoIterator<Item = (TensorInfo, usize)>,
        local: impl IntoIterator<Item = Tensor>,
    ) -> Result<Self> {
        let place = Place::new(&*group, Ranks::of(&*group)?, device, pool)?;
        let wrong = |detail: String, remedy| Err(refused(&*group, "share tensors", detail, remedy));
        let (mut entries, mut by_name) = (Vec::new(), HashMap::new());
        for (info, owner) in tensors {
            info.check("share")?;
            if owner >= place.ranks.size {
                let detail = format!(
                    "tensor {} is said to be on rank {owner}, which there is not",
                    Quoted(&info.name)
                );
                return wrong(detail, "count ranks from 0");
            }
            if by_name.insert(Arc::clone(&info.name), entries.len()).is_some() {
                let detail = format!("tensor {} comes twice", Quoted(&info.name));
                return wrong(detail, "leave out one of the files that hold it");
            }
            entries.push(Entry { info, owner, tensor: None });
        }
        for tensor in local {
            place.check(tensor.view(), "share tensors", &*group)?;
            let entry = by_name.get(tensor.name()).map(|&number: &usize| &mut entries[number]);
            let expected = |entry: &Entry| entry.owner == place.own() && entry.info.is_like(tensor.info());
            match entry {
                Some(entry) if expected(entry) => entry.tensor = Some(tensor),
                _ => {
                    let spelled = tensor.info().spelled();
                    let detail =
                        format!("this rank has {}, {spelled}, and is not said to", Quoted(tensor.name()));
                    return wrong(detail, "give every rank the same list of tensors and owners");
                }
            }
        }
        if let Some(entry) = entries.iter().find(|entry| entry.owner == place.own() && entry.tensor.is_none())
        {
            let detail = format!("this rank is said to have {}, and has not", Quoted(&entry.info.name));
            return wrong(detail, "give every rank the same list of tensors and owners");
        }
        Ok(Self { group, place, entries, by_name })
    }

    /// The group.
    pub fn group(&self) -> &Arc<dyn ProcessGroup> {
        &self.group
    }

    /// The names, in an order that is the same on every rank.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.info.name)
    }

    /// What a tensor is, whole, if there is one of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entry(name).ok().map(|entry| &entry.info)
    }

    /// The rank that has a tensor, if there is one of that name.
    pub fn owner(&self, name: &str) -> Option<usize> {
        self.entry(name).ok().map(|entry| entry.owner)
    }

    /// A tensor that this rank has; `None` where another has it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn local(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.entry(name)?.tensor.clone())
    }

    /// The whole tensor, on every rank. On the one that has it, that is no copy.
    ///
    /// # Errors
    /// When there is none of that name, its memory cannot be had, or the group fails.
    pub fn broadcast(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        if entry.owner == self.place.own() {
            let tensor = entry.here()?;
            self.group.broadcast(tensor)?;
            return Ok(tensor.clone());
        }
        self.receive(&entry.info, |tensor| self.group.recv_broadcast(tensor, entry.owner))
    }

    /// This rank's part of the tensor, of as many as there are ranks, along dimension `dim`, as [`chunk`] cuts it: the last parts may be shorter, or have
    /// no elements. The rank that has the tensor needs memory for all parts but its whole while they are sent.
    ///
    /// # Errors
    /// When there is none of that name, or no such dimension; a part does not begin at a byte; its memory cannot be had, or the group fails.
    pub fn shard(&self, name: &str, dim: usize) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let parts = self.parts(&entry.info, dim)?;
        let Ranks { own, size } = self.place.ranks;
        // There is a part for each rank, and so for this one.
        let missing =
            || refused(&*self.group, "share tensors", "this rank has no part", "report this as a bug");
        if entry.owner != own {
            let part = parts.get(own).ok_or_else(missing)?;
            return self.receive(&part.info, |tensor| self.group.recv_scatter(tensor, entry.owner));
        }
        let whole = entry.here()?;
        if size == 1 {
            return Ok(whole.clone());
        }
        // What is one run is sent from where it is; what this rank keeps is a copy, so that it does not keep the whole.
        let cut = |(rank, part): (usize, &Part)| match part.runs {
            1 if rank != own => {
                whole.narrow(dim, part_range(&entry.info, dim, rank, size).start, part.info.shape[dim])
            }
            _ if rank != own && part.is_whole() => Ok(whole.clone()),
            _ => self.place.copy(whole.view(), part),
        };
        let parts = parts.iter().enumerate().map(cut).collect::<Result<Vec<_>>>()?;
        self.group.scatter(&parts)?;
        parts.get(own).cloned().ok_or_else(missing)
    }

    /// This rank's [parts](Self::shard) of several tensors, side by side along dimension `dim`: as the columns of a fused projection are had. The
    /// tensors have one type and, but for that dimension, one shape. The result has the first one's name.
    ///
    /// # Errors
    /// As [`shard`](Self::shard), and when no names are given or the tensors do not fit together.
    pub fn columns<'a>(&self, names: impl IntoIterator<Item = &'a str>, dim: usize) -> Result<Tensor> {
        let entries = names.into_iter().map(|name| self.entry(name)).collect::<Result<Vec<_>>>()?;
        let Some(first) = entries.first() else {
            return Err(refused(
                &*self.group,
                "join tensors",
                "no names were given",
                "name at least one tensor",
            ));
        };
        let others = |info: &TensorInfo| {
            let mut shape = info.shape.to_vec();
            (dim < shape.len()).then(|| shape.remove(dim)).map(|_| (info.dtype, shape))
        };
        for Entry { info, .. } in &entries {
            if others(info).is_none() || others(info) != others(&first.info) {
                let expected = format!(
                    "one that is as {}, {}, but in dimension {dim}",
                    Quoted(&first.info.name),
                    first.info.spelled()
                );
                let (name, got) = (info.name.to_string(), info.spelled());
                let remedy = "join tensors of one type and shape".into();
                return Err(Error::Tensor { operation: "join", name, got, expected, remedy });
            }
        }
        let shards: Vec<_> =
            entries.iter().map(|entry| self.shard(&entry.info.name, dim)).collect::<Result<_>>()?;
        if let [only] = &shards[..] {
            return Ok(only.clone());
        }
        let mut joined = shards[0].info().clone();
        let mut extents = shards.iter().map(|shard| shard.shape()[dim]);
        let Some(extent) = extents.try_fold(0_usize, |sum, extent| sum.checked_add(extent)) else {
            // Of tensors without elements, a dimension may be of any length.
            let (name, got) = (joined.name.to_string(), format!("2^64 or more in dimension {dim}"));
            let (expected, remedy) = ("fewer than 2^64".into(), "join fewer of them".into());
            return Err(Error::Tensor { operation: "join", name, got, expected, remedy });
        };
        joined.shape[dim] = extent;
        joined.nbytes = shards.iter().fold(0, |sum, shard| shard.nbytes().saturating_add(sum));
        joined.check("join")?;
        let mut start = 0;
        let place = |shard: Tensor| {
            let range = start..start + shard.shape()[dim];
            start = range.end;
            Ok((Part::new(&joined, dim, range)?, shard))
        };
        let parts = shards.into_iter().map(place).collect::<Result<Vec<_>>>()?;
        self.place.join(joined, &parts)
    }

    /// The whole tensor on rank `to`; `None` on the others.
    ///
    /// # Errors
    /// When there is none of that name, or no rank `to`; its memory cannot be had, or the group fails.
    pub fn push(&self, name: &str, to: usize) -> Result<Option<Tensor>> {
        let (entry, Ranks { own, size }) = (self.entry(name)?, self.place.ranks);
        if to >= size {
            let detail = format!("got rank {to}, expected one that there is");
            return Err(refused(&*self.group, "push a tensor", detail, "count ranks from 0"));
        }
        if to == own && entry.owner == own {
            return Ok(Some(entry.here()?.clone()));
        }
        if entry.owner == own {
            self.group.send(entry.here()?, to)?;
        }
        if to != own {
            return Ok(None);
        }
        self.receive(&entry.info, |tensor| self.group.recv(tensor, entry.owner)).map(Some)
    }

    /// Every tensor in the order of [`names`](Self::names), [broadcast](Self::broadcast) when its turn comes. This rank gives up its own hold of a
    /// tensor as soon as it is handed out, so memory goes as tensors are dropped.
    pub fn drain(self) -> Relay<impl Iterator<Item = Result<Tensor>>> {
        let Self { group, place, entries, by_name: _ } = self;
        let (mut order, mut local) = (Vec::with_capacity(entries.len()), Vec::new());
        for Entry { info, owner, tensor } in entries {
            order.push((info, owner));
            local.extend(tensor.map(Ok));
        }
        Relay::of(group, place, order, local.into_iter())
    }

    /// A tensor that the group receives.
    fn receive(&self, info: &TensorInfo, receive: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<Tensor> {
        self.place.receive(&*self.group, info.clone(), receive)
    }

    /// The parts of all ranks.
    fn parts(&self, info: &TensorInfo, dim: usize) -> Result<Vec<Part>> {
        let size = self.place.ranks.size;
        (0..size).map(|rank| Part::new(info, dim, part_range(info, dim, rank, size))).collect()
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let number = self.by_name.get(name).copied();
        number
            .and_then(|number| self.entries.get(number))
            .ok_or_else(|| Error::unknown_tensor(name, self.names(), self.entries.len()))
    }
}

/// The indexes of a rank's part. Of a dimension that there is not, none: [`Part::new`] says so.
fn part_range(info: &TensorInfo, dim: usize, rank: usize, size: usize) -> Range<usize> {
    chunk(info.shape.get(dim).copied().unwrap_or(0), rank, size)
}

impl Entry {
    /// The tensor, on its owner.
    fn here(&self) -> Result<&Tensor> {
        self.tensor.as_ref().ok_or_else(|| Error::Tensor {
            operation: "share",
            name: self.info.name.to_string(),
            got: "a tensor of another rank".into(),
            expected: "one of this rank".into(),
            remedy: "report this as a bug".into(),
        })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.entries.iter().filter(|entry| entry.tensor.is_some()).count();
        f.debug_struct("Shared")
            .field("group", &self.group)
            .field("tensors", &self.entries.len())
            .field("local", &local)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of rank {}", self.info.name, self.owner)
    }
}
