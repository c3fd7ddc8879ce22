//! [`Permissions`]: what users may do with a file, which the file that replaces it keeps.
//!
//! # Invariants
//! - **A4** No one may read or write the new file who could not read or write the one that it replaces, except the user who saves.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{XattrFlags, fremovexattr, fsetxattr, lgetxattr, lgetxattr_query};
use rustix::io::Errno;

/// The attribute that holds a POSIX access control list.
const ACL: &str = "system.posix_acl_access";

/// The bits of a mode that a file keeps when an ordinary user writes to it: not set-user-ID, and set-group-ID only where the group may not execute it.
fn kept_by_writes(mode: u32) -> u32 {
    if mode & 0o010 == 0 { mode & 0o3777 } else { mode & 0o1777 }
}

/// A file's mode, owner, group and access control list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Permissions {
    mode: u32,
    uid: u32,
    gid: u32,
    acl: Option<Vec<u8>>,
}

impl Permissions {
    /// Those of the file at a path, which is no link.
    pub(super) fn of(file: &Path, metadata: &fs::Metadata) -> io::Result<Self> {
        let (mode, uid, gid) = (kept_by_writes(metadata.mode()), metadata.uid(), metadata.gid());
        Ok(Self { mode, uid, gid, acl: acl(file)? })
    }

    /// Gives them to another file, which this process has made: the owner and the group where the system allows that.
    pub(super) fn give_to(&self, file: &File) -> io::Result<()> {
        let made = file.metadata()?;
        let is_same_group = made.gid() == self.gid;
        let keeps_group = if made.uid() == self.uid {
            is_same_group || fchown(file, None, Some(self.gid)).is_ok()
        } else {
            // Only a privileged user may give files away; others may at least have the group, if they are in it.
            fchown(file, Some(self.uid), Some(self.gid)).is_ok()
                || is_same_group
                || fchown(file, None, Some(self.gid)).is_ok()
        };
        match &self.acl {
            Some(acl) if keeps_group => fsetxattr(file, ACL, acl, XattrFlags::empty())?,
            // A default list of the folder may have given the new file one.
            _ => match fremovexattr(file, ACL) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            },
        }
        let mode = match keeps_group {
            true => self.mode,
            false => without_group(self.mode, self.acl.is_some()),
        };
        if file.metadata()?.mode() & 0o7777 != mode {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// The mode of a file that gets another group: members of either group may be among the others now, so both may do what both could.
fn without_group(mode: u32, has_acl: bool) -> u32 {
    // With a list, the group's bits say what it allows at most.
    let common = if has_acl { 0 } else { (mode >> 3) & mode & 0o7 };
    (mode & 0o700) | (common << 3) | common
}

fn acl(file: &Path) -> io::Result<Option<Vec<u8>>> {
    let read = || {
        let mut list = vec![0; lgetxattr_query(file, ACL)?];
        let length = lgetxattr(file, ACL, &mut list[..])?;
        list.truncate(length);
        Ok(list)
    };
    match read() {
        Ok(list) => Ok(Some(list)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_keeps_what_a_write_of_an_ordinary_user_leaves() {
        assert_eq!(kept_by_writes(0o100_644), 0o644);
        assert_eq!(kept_by_writes(0o104_755), 0o755);
        assert_eq!(kept_by_writes(0o102_755), 0o755);
        assert_eq!(kept_by_writes(0o103_644), 0o3644);
    }

    #[test]
    fn a_file_of_another_group_allows_groups_and_others_what_both_could() {
        for (mode, expected) in
            [(0o600, 0o600), (0o640, 0o600), (0o664, 0o644), (0o604, 0o600), (0o2666, 0o666)]
        {
            assert_eq!(without_group(mode, false), expected, "{mode:o}");
        }
        assert_eq!(without_group(0o664, true), 0o600);
    }
}
