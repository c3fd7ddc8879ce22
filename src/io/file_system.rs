//! Which file system a file is on.

use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{StatFs, fstatfs, statfs};

/// A file system, by the number that the kernel knows it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileSystem(u32);

impl FileSystem {
    pub(crate) const EXT4: Self = Self(0xEF53);
    pub(crate) const XFS: Self = Self(0x5846_5342);
    pub(crate) const BTRFS: Self = Self(0x9123_683E);
    pub(crate) const F2FS: Self = Self(0xF2F5_2010);
    pub(crate) const TMPFS: Self = Self(0x0102_1994);
    pub(crate) const NFS: Self = Self(0x6969);
    pub(crate) const LUSTRE: Self = Self(0x0BD0_0BD0);
    pub(crate) const GPFS: Self = Self(0x4750_4653);
    pub(crate) const BEEGFS: Self = Self(0x1983_0326);
    /// Virtiofs, too.
    pub(crate) const FUSE: Self = Self(0x6573_5546);
    /// The kernel did not say.
    pub(crate) const UNKNOWN: Self = Self(0);
    const OVERLAY: Self = Self(0x794C_7630);

    /// That of an open file.
    pub(crate) fn of_file(file: impl AsFd) -> Self {
        Self::of(fstatfs(file))
    }

    fn of(said: rustix::io::Result<StatFs>) -> Self {
        // As wide as it is on no system: the numbers have 32 bits, whatever their sign.
        said.map_or(Self::UNKNOWN, |said| Self(said.f_type as u32))
    }
}

/// Whether a file is kept in memory, in small pages that take readers longer than a disk's file that is cached.
pub(crate) fn is_in_memory(path: &Path) -> bool {
    FileSystem::of(statfs(path)) == FileSystem::TMPFS
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::EXT4 => "ext4",
            Self::XFS => "xfs",
            Self::BTRFS => "btrfs",
            Self::F2FS => "f2fs",
            Self::TMPFS => "tmpfs",
            Self::NFS => "NFS",
            Self::LUSTRE => "Lustre",
            Self::GPFS => "GPFS",
            Self::BEEGFS => "BeeGFS",
            Self::FUSE => "FUSE",
            Self::OVERLAY => "overlayfs",
            Self(number) => return write!(f, "the file system {number:#x}"),
        };
        f.pad(name)
    }
}
