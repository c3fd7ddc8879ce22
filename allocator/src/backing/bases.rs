//! [`Bases`]: the first addresses of a planned batch's regions.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use smallvec::SmallVec;

use super::commit::Backing;
use crate::error::{Error, Result};

/// First addresses of the regions of a batch's layout, by region; the offsets of placements count from them.
///
/// Regions that are backed in parts ([`RegionParts`](crate::RegionParts)) are reserved as addresses alone:
/// [`bring_up`](Self::bring_up) commits their memory, and [`wait_for`](Self::wait_for) waits for it. Parts in which no fragment lies any
/// more are released, so bases that outlive their batch commit nothing.
#[derive(Debug, Clone, Default)]
pub struct Bases {
    addresses: SmallVec<[NonNull<u8>; 4]>,
    /// `Some` for regions that are backed in parts.
    backing: SmallVec<[Option<Arc<Backing>>; 4]>,
    /// For errors.
    pool: Arc<str>,
    label: Arc<str>,
}

// SAFETY: addresses, which give no access by themselves, and what is Send and Sync.
unsafe impl Send for Bases {}
// SAFETY: as above.
unsafe impl Sync for Bases {}

impl Deref for Bases {
    type Target = [NonNull<u8>];

    fn deref(&self) -> &[NonNull<u8>] {
        &self.addresses
    }
}

impl Bases {
    pub(crate) fn new(
        pool: &str,
        label: &Arc<str>,
        regions: impl Iterator<Item = (NonNull<u8>, Option<Arc<Backing>>)>,
    ) -> Self {
        let (addresses, backing) = regions.unzip();
        Self { addresses, backing, pool: pool.into(), label: Arc::clone(label) }
    }

    /// Whether there are regions that are backed in parts.
    pub fn are_parted(&self) -> bool {
        self.backing.iter().any(Option::is_some)
    }

    /// Commits the memory of the regions in the order of their addresses, until `stop` returns true or the memory refuses. Meant for a
    /// separate thread that runs ahead of the writes; [`wait_for`](Self::wait_for) reports the outcome. Several threads may call it at
    /// the same time. In a forked child it does nothing.
    pub fn bring_up(&self, stop: impl Fn() -> bool) {
        self.backing.iter().flatten().for_each(|backing| backing.bring_up(&stop));
    }

    /// Waits until the first `end` bytes of a region are committed, as far as live fragments lie there.
    ///
    /// # Errors
    /// When the memory refused a part or [`bring_up`](Self::bring_up) was stopped; when the last of these bytes were released, since no
    /// fragment lies there any more; in a forked child.
    pub fn wait_for(&self, region: usize, end: u64) -> Result<()> {
        let Some(Some(backing)) = self.backing.get(region) else { return Ok(()) };
        if backing.is_forked_child() {
            return Err(Error::Forked { pool: self.pool.to_string(), operation: "wait for memory" });
        }
        backing.wait_for(end).map_err(|reason| Error::OutOfMemory {
            pool: self.pool.to_string(),
            label: self.label.to_string(),
            requested: end.min(backing.len()),
            reserved: backing.present_bytes(),
            source: reason.to_string().into(),
        })
    }

    /// Waits until all regions are committed.
    pub(crate) fn wait_for_all(&self) -> Result<()> {
        (0..self.addresses.len()).try_for_each(|region| self.wait_for(region, u64::MAX))
    }

    pub(crate) fn backing(&self, region: usize) -> Option<&Arc<Backing>> {
        self.backing.get(region)?.as_ref()
    }
}
