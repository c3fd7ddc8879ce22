//! Files that are made in memory.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use super::entry::{Entry, Item, Source};
use super::fill::CHUNK_BYTES;
use super::plan::{PlanOptions, ShardPlan, plan_shard};
use crate::error::{Error, Result};

/// A file in memory that is planned and not yet made: its length is known, and [`write_to`](Self::write_to) makes its bytes.
#[must_use = "no bytes are made before `write_to` or `to_vec` is called"]
pub struct Serialized<'a> {
    plan: ShardPlan,
    /// In the order of the plan.
    items: Vec<Item<'a>>,
}

impl<'a> Serialized<'a> {
    pub(super) fn new(mut items: Vec<Item<'a>>, options: &PlanOptions) -> Result<Self> {
        let entries: Vec<Entry> = items.iter().map(|item| item.entry.clone()).collect();
        let plan = plan_shard(entries.iter().collect(), Path::new(""), 0, 1, options)?;
        let order: HashMap<&str, usize> =
            plan.entries().iter().enumerate().map(|(number, entry)| (entry.name(), number)).collect();
        items.sort_by_cached_key(|item| order.get(item.entry.name()).copied());
        Ok(Self { plan, items })
    }

    /// The length of the file in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.plan.total_bytes()
    }

    /// The file's tensors, in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        self.plan.entries()
    }

    /// Writes the file to a buffer of its length.
    ///
    /// # Errors
    /// When the buffer has another length, a device does not give a tensor's bytes, or a function does not fill its part. The content of the buffer is
    /// unspecified then.
    pub fn write_to(&self, buffer: &mut [u8]) -> Result<()> {
        let (got, expected) = (buffer.len() as u64, self.total_bytes());
        let mut rest = buffer;
        if got != expected {
            return Err(wrong_length(got, expected));
        }
        let mut next = |bytes: u64| {
            let taken = rest.split_off_mut(..usize::try_from(bytes).unwrap_or(usize::MAX));
            taken.ok_or_else(|| wrong_length(got, expected))
        };
        let header = self.plan.header();
        next(header.len() as u64)?.copy_from_slice(header);
        for Item { entry, source } in &self.items {
            let to = next(entry.nbytes())?;
            match source {
                Source::Bytes(bytes) => copy(bytes, to)?,
                Source::Tensor(tensor) => match tensor.as_bytes() {
                    Ok(bytes) => copy(bytes, to)?,
                    Err(_) => copy(&tensor.to_host()?, to)?,
                },
                Source::Fill(fill) => {
                    let mut offset = 0;
                    for chunk in to.chunks_mut(CHUNK_BYTES as usize) {
                        let bytes = chunk.len() as u64;
                        let name = || entry.name().to_owned();
                        fill(offset, chunk).map_err(|source| Error::Fill {
                            name: name(),
                            offset,
                            bytes,
                            source,
                        })?;
                        offset += bytes;
                    }
                }
            }
        }
        Ok(())
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// When the system has no memory for them, and as [`write_to`](Self::write_to).
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let length = usize::try_from(self.total_bytes()).unwrap_or(usize::MAX);
        bytes.try_reserve_exact(length).map_err(|error| Error::Option {
            option: "tensors",
            got: format!("a file of {length} bytes: {error}"),
            expected: "one that fits into the memory of this process".into(),
            remedy: "write it to a disk with save_file()".into(),
        })?;
        bytes.resize(length, 0);
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }
}

impl fmt::Debug for Serialized<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serialized")
            .field("tensors", &self.items.len())
            .field("total_bytes", &self.total_bytes())
            .finish_non_exhaustive()
    }
}

/// Copies bytes to a place of the same length.
fn copy(from: &[u8], to: &mut [u8]) -> Result<()> {
    if from.len() != to.len() {
        return Err(wrong_length(to.len() as u64, from.len() as u64));
    }
    to.copy_from_slice(from);
    Ok(())
}

fn wrong_length(got: u64, expected: u64) -> Error {
    Error::Option {
        option: "buffer",
        got: format!("{got} bytes"),
        expected: format!("{expected}"),
        remedy: "give one of total_bytes() bytes".into(),
    }
}
