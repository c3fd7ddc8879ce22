//! Whether file systems have room for what is to be written.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::statvfs;

use super::target::Target;
use crate::error::{Error, Result};

/// Checks that each file system has room for the files that go there, each with its size in bytes, and `spare` bytes more.
///
/// A file system that does not say how much is free is not checked: then the system finds out when the files are made, or written to.
pub(super) fn check<'a>(files: impl Iterator<Item = (&'a Target, u64)>, spare: u64) -> Result<()> {
    let mut systems: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    for (target, bytes) in files {
        let (_, needed) = systems.entry(target.device()).or_insert((target.folder(), 0));
        *needed = needed.saturating_add(bytes);
    }
    for (folder, needed) in systems.into_values() {
        match free_space(folder)? {
            Some(free) if needed.saturating_add(spare) > free => {
                return Err(Error::Space { folder: folder.into(), needed, spare, free });
            }
            Some(_) => {}
            None => tracing::debug!(?folder, "the file system does not say how much is free"),
        }
    }
    Ok(())
}

/// Bytes that this user may still write to the file system of a folder; `None` where the file system does not say.
///
/// # Errors
/// When the system refuses to say.
pub fn free_space(folder: &Path) -> Result<Option<u64>> {
    let system = statvfs(folder).map_err(|error| Error::Io {
        operation: "ask for the free space of",
        path: folder.into(),
        source: error.into(),
    })?;
    let block_bytes = if system.f_frsize == 0 { system.f_bsize } else { system.f_frsize };
    Ok(free_bytes(system.f_blocks, system.f_bavail, block_bytes))
}

/// Some file systems count no blocks. They do not say how much is free, rather than that nothing is.
fn free_bytes(blocks: u64, available: u64, block_bytes: u64) -> Option<u64> {
    let says = blocks > 0 && available <= blocks && block_bytes > 0;
    says.then(|| available.saturating_mul(block_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_in_bytes() {
        assert_eq!(free_bytes(100, 10, 512), Some(5120));
        assert_eq!(free_bytes(100, 0, 512), Some(0));
        assert_eq!(free_bytes(u64::MAX, u64::MAX, 4096), Some(u64::MAX));
    }

    #[test]
    fn what_a_file_system_does_not_say_is_unknown_and_not_zero() {
        for (blocks, available, block_bytes) in
            [(0, 0, 4096), (0, 0, 0), (0, 10, 4096), (100, 10, 0), (100, u64::MAX, 4096)]
        {
            assert_eq!(free_bytes(blocks, available, block_bytes), None, "{available} of {blocks}");
        }
    }
}
