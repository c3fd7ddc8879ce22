//! [`Bases`]: where the regions of a planned batch begin.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use smallvec::SmallVec;

use super::commit::Backing;
use crate::error::{Error, Result};

/// First addresses of the regions of a batch's layout, by region; a placement's offset counts from there.
///
/// Regions that are backed in parts ([`RegionParts`](crate::RegionParts)) are addresses at first:
/// [`bring_up`](Self::bring_up) puts memory behind them, and [`wait_for`](Self::wait_for) waits for it. What no fragment lies in any more
/// has been given back, or is about to be: bases that outlive their batch bring nothing up.
#[derive(Debug, Clone, Default)]
pub struct Bases {
    addresses: SmallVec<[NonNull<u8>; 4]>,
    /// Those of the regions that are backed in parts.
    backing: SmallVec<[Option<Arc<Backing>>; 4]>,
    /// Whose they are, for errors.
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

    /// Whether there are regions to be brought up.
    pub fn are_parted(&self) -> bool {
        self.backing.iter().any(Option::is_some)
    }

    /// Puts memory behind the regions, in the order of their addresses, until `stop` says so. Meant for a thread of its own, ahead of
    /// what is written. What it comes to, [`wait_for`](Self::wait_for) says. Several threads may do it at once. In a forked child it does nothing.
    pub fn bring_up(&self, stop: impl Fn() -> bool) {
        self.backing.iter().flatten().for_each(|backing| backing.bring_up(&stop));
    }

    /// Waits until there is memory behind the first `end` bytes of a region, as far as live fragments lie there.
    ///
    /// # Errors
    /// When the memory refused a part, or it was stopped; when the last of these bytes have been given back, since no fragment lies there any
    /// more; in a forked child.
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

    /// Waits for all of it.
    pub(crate) fn wait_for_all(&self) -> Result<()> {
        (0..self.addresses.len()).try_for_each(|region| self.wait_for(region, u64::MAX))
    }

    pub(crate) fn backing(&self, region: usize) -> Option<&Arc<Backing>> {
        self.backing.get(region)?.as_ref()
    }
}
