//! Whether file systems have room for what is to be written.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::{StatVfs, statvfs};

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
        match free(folder)? {
            Some(free) if needed.saturating_add(spare) > free => {
                return Err(Error::Space { folder: folder.into(), needed, spare, free });
            }
            Some(_) => {}
            None => tracing::debug!(?folder, "the file system does not say how much is free"),
        }
    }
    Ok(())
}

/// Bytes that this user may still write to the file system of a folder; `None` where it does not say.
pub(super) fn free(folder: &Path) -> Result<Option<u64>> {
    let system = statvfs(folder).map_err(|error| Error::Io {
        operation: "ask for the free space of",
        path: folder.into(),
        source: error.into(),
    })?;
    Ok(free_of(&system))
}

/// A file system without blocks, or with more free than it has, or with blocks of no size, does not say.
fn free_of(system: &StatVfs) -> Option<u64> {
    let block = if system.f_frsize == 0 { system.f_bsize } else { system.f_frsize };
    let says = system.f_blocks > 0 && system.f_bavail <= system.f_blocks && block > 0;
    says.then(|| system.f_bavail.saturating_mul(block))
}

#[cfg(test)]
mod tests {
    use rustix::fs::StatVfsMountFlags;

    use super::*;

    fn system(f_blocks: u64, f_bavail: u64, f_frsize: u64, f_bsize: u64) -> StatVfs {
        StatVfs {
            f_bsize,
            f_frsize,
            f_blocks,
            f_bfree: f_bavail,
            f_bavail,
            f_files: 0,
            f_ffree: 0,
            f_favail: 0,
            f_fsid: 0,
            f_flag: StatVfsMountFlags::empty(),
            f_namemax: 255,
        }
    }

    #[test]
    fn free_space_is_in_fragments_or_else_in_blocks() {
        assert_eq!(free_of(&system(100, 10, 512, 4096)), Some(5120));
        assert_eq!(free_of(&system(100, 10, 0, 4096)), Some(40_960));
        assert_eq!(free_of(&system(100, 0, 512, 4096)), Some(0));
        assert_eq!(free_of(&system(u64::MAX, u64::MAX, 4096, 4096)), Some(u64::MAX));
    }

    #[test]
    fn what_a_file_system_does_not_say_is_unknown_and_not_zero() {
        for unknown in [
            system(0, 0, 4096, 4096),
            system(0, 0, 0, 0),
            system(0, 10, 4096, 4096),
            system(100, 10, 0, 0),
            system(100, u64::MAX, 4096, 4096),
        ] {
            assert_eq!(free_of(&unknown), None, "{unknown:?}");
        }
    }
}
