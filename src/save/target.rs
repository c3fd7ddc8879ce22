//! [`Target`]: what a path leads to, looked at before anything is written and again before a file gets that name.
//!
//! # Invariants
//! - **A3** A save replaces regular files and makes new ones. Whatever else a path leads to stays as it is, and the save is refused.

use std::fs::{self, FileType};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags, accessat, statx};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::permissions::Permissions;
use crate::error::{Error, Result};
use crate::regular::{self, NotOpened};

/// How many symbolic links in a row are followed, as in Linux.
const MAX_LINKS: usize = 40;

/// What tells files apart: the device and the inode.
pub(super) type FileId = (u64, u64);

/// Where a file is to be.
#[derive(Debug)]
pub(super) struct Target {
    /// The path, absolute, with its links.
    path: PathBuf,
    /// The file: its folder without links, and its name there, which is no link.
    file: PathBuf,
    folder_id: FileId,
    replaced: Option<Replaced>,
}

/// A file that will be replaced.
#[derive(Debug)]
struct Replaced {
    id: FileId,
    permissions: Permissions,
}

impl Target {
    /// Looks at what a path leads to. Links are followed.
    ///
    /// # Errors
    /// When it is something other than a regular file, a file that this user may not write to, or a new name in a folder where this user may not create
    /// files.
    pub(super) fn look(path: &Path) -> Result<Self> {
        check_name(path, path)?;
        // Relative to the directory in which the process is now.
        let given = path;
        let path =
            path::absolute(given).map_err(|error| failed(given, "find the working directory of", error))?;
        // The system has rules of its own for links, and knows where those of /proc lead.
        let found = match fs::metadata(&path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(unreachable(given, error)),
        };
        if let Some(found) = &found {
            check_kind(given, &path, found.file_type())?;
        }
        let named = follow(given, &path)?;
        let (folder, folder_id) = resolved(given, folder_of(&named))?;
        check_folder(given, &folder)?;
        let file = folder.join(named.file_name().unwrap_or_default());
        let replaced = Replaced::look(given, &file)?;
        let is_named = replaced.as_ref().map(|replaced| replaced.id) == found.as_ref().map(id);
        // For a file whose name is gone, a link of /proc has the text `NAME (deleted)`, which another file may be called.
        let is_of_a_deleted =
            || fs::read_link(&path).is_ok_and(|to| to.as_os_str().as_bytes().ends_with(b" (deleted)"));
        if found.is_some() && !is_named && path.is_symlink() && (replaced.is_none() || is_of_a_deleted()) {
            let problem = "it leads to an open file whose name is gone, expected a file with a name; save to another path";
            return Err(refused(given, problem.into(), None));
        }
        Ok(Self { path, file, folder_id, replaced })
    }

    /// Looks at it again.
    ///
    /// # Errors
    /// As [`look`](Self::look), and when the path leads elsewhere by now.
    pub(super) fn look_again(&self) -> Result<Self> {
        let again = Self::look(&self.path)?;
        if again.file == self.file {
            return Ok(again);
        }
        let problem = format!(
            "it leads to {:?}, expected {:?} as when the save began; save again when no one changes links",
            again.file, self.file
        );
        Err(refused(&self.path, problem, None))
    }

    /// The absolute path, with its links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, without links on the way.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The folder of the file.
    pub(super) fn folder(&self) -> &Path {
        folder_of(&self.file)
    }

    /// The file system.
    pub(super) fn device(&self) -> u64 {
        self.folder_id.0
    }

    /// What is the same for two paths that lead to one file, existing or not.
    pub(super) fn place(&self) -> (FileId, &Path) {
        (self.folder_id, Path::new(self.file.file_name().unwrap_or_default()))
    }

    /// The file that is there now, which may have other names.
    pub(super) fn id(&self) -> Option<FileId> {
        self.replaced.as_ref().map(|replaced| replaced.id)
    }

    /// What users may do with the file that is there now.
    pub(super) fn permissions(&self) -> Option<&Permissions> {
        self.replaced.as_ref().map(|replaced| &replaced.permissions)
    }
}

impl Replaced {
    /// Looks at the file at a path, which is no link; `None` if there is no file.
    fn look(given: &Path, file: &Path) -> Result<Option<Self>> {
        // Another process may remove it between one call and the next.
        let found = match fs::symlink_metadata(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found.map_err(|error| failed(given, "look at", error))?,
        };
        check_kind(given, file, found.file_type())?;
        match may(file, Access::WRITE_OK) {
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => {
                let problem = match error {
                    Errno::PERM => {
                        "the file that is there is immutable; take that attribute from it (chattr -i), or save under another name"
                    }
                    Errno::ROFS => {
                        "the file that is there is mounted read-only; mount it for writing, or save under another name"
                    }
                    _ => {
                        "this user may not write to the file that is there, expected permission to; give it, or save under another name"
                    }
                };
                return Err(refused(given, problem.into(), Some(error.into())));
            }
            Ok(()) => {}
        }
        // Kernels before 5.8 do not say.
        let about = statx(CWD, file, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
        let attributes = about.map_or(StatxAttributes::empty(), |about| about.stx_attributes);
        if attributes.contains(StatxAttributes::MOUNT_ROOT) {
            let problem = "it is a mount point, which no other file can replace; save to a folder that is mounted, or elsewhere";
            return Err(refused(given, problem.into(), Some(Errno::BUSY.into())));
        }
        if attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
            let problem = "the file that is there is immutable, or may only be appended to; take that attribute from it (chattr -i -a), or save under another name";
            return Err(refused(given, problem.into(), Some(Errno::PERM.into())));
        }
        if is_kept_by_its_folder(file, &found) {
            let problem = "the file that is there belongs to another user, and its folder lets only owners replace files (it is sticky); save under another name";
            return Err(refused(given, problem.into(), Some(Errno::PERM.into())));
        }
        match Permissions::of(file, &found) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            permissions => {
                let permissions =
                    permissions.map_err(|error| failed(given, "read the permissions of", error))?;
                Ok(Some(Self { id: id(&found), permissions }))
            }
        }
    }
}

/// Whether the sticky bit of its folder keeps this user from replacing a file.
fn is_kept_by_its_folder(file: &Path, found: &fs::Metadata) -> bool {
    const STICKY: u32 = 0o1000;
    let user = geteuid();
    // Root may, as far as is known here.
    let owns = |found: &fs::Metadata| user.is_root() || found.uid() == user.as_raw();
    let folder = fs::metadata(folder_of(file));
    folder.is_ok_and(|folder| folder.mode() & STICKY != 0 && !owns(&folder) && !owns(found))
}

fn id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// A folder by its path without links, and its identity.
fn resolved(given: &Path, folder: &Path) -> Result<(PathBuf, FileId)> {
    let about = fs::metadata(folder).map_err(|error| no_folder(given, folder, error))?;
    if !about.is_dir() {
        return Err(no_folder(given, folder, Errno::NOTDIR.into()));
    }
    // Links of /proc into other namespaces have texts that mean something else here: then the path stays as it is.
    let plain = fs::canonicalize(folder).ok();
    let plain = plain.filter(|plain| fs::metadata(plain).is_ok_and(|found| id(&found) == id(&about)));
    Ok((plain.unwrap_or_else(|| folder.to_owned()), id(&about)))
}

/// Asks whether this process may do something with a file.
fn may(path: &Path, access: Access) -> rustix::io::Result<()> {
    match accessat(CWD, path, access, AtFlags::EACCESS) {
        // Where a container refuses the newer call, the older one answers for the user's real number.
        Err(Errno::PERM | Errno::NOSYS) => accessat(CWD, path, access, AtFlags::empty()),
        answer => answer,
    }
}

/// The path that is reached by following the links at the end of `path`.
fn follow(given: &Path, path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(to) => {
                path = folder_of(&path).join(to);
                check_name(given, &path)?;
            }
            // No link, or nothing there.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(unreachable(given, error)),
        }
    }
    Err(unreachable(given, Errno::LOOP.into()))
}

/// Checks that a path ends in the name of a file.
fn check_name(given: &Path, path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_bytes();
    let problem = match bytes.rsplit(|&byte| byte == b'/').next().unwrap_or_default() {
        _ if bytes.is_empty() => "the path is empty, expected the name of a file; name one",
        _ if bytes.contains(&0) => "the path has a NUL byte, which no file name has; name another file",
        b"" | b"." | b".." => "the path ends in a directory, expected the name of a file; add one",
        _ => return Ok(()),
    };
    Err(refused(given, problem.into(), None))
}

/// Checks that a path leads to a regular file.
fn check_kind(given: &Path, path: &Path, kind: FileType) -> Result<()> {
    let Err(NotOpened::NotRegular(what)) = regular::check(kind) else { return Ok(()) };
    let link = fs::read_link(path).map_or(String::new(), |to| format!("a link to {to:?}, "));
    let remedy = match kind.is_dir() {
        true => "add the name of a file",
        false => "save to a regular file, and copy it there if that is wanted",
    };
    Err(refused(given, format!("it is {link}{what}, expected a regular file or a new name; {remedy}"), None))
}

/// Checks that files can be made in a folder.
fn check_folder(given: &Path, folder: &Path) -> Result<()> {
    let Err(error) = may(folder, Access::WRITE_OK | Access::EXEC_OK) else { return Ok(()) };
    let problem = match error {
        Errno::ROFS => {
            format!("its folder {folder:?} is on a file system that is read-only; save elsewhere")
        }
        _ => format!(
            "this user may not create files in its folder {folder:?}, expected permission to; give it, or save elsewhere"
        ),
    };
    Err(refused(given, problem, Some(error.into())))
}

fn no_folder(given: &Path, folder: &Path, error: io::Error) -> Error {
    let problem = match error.kind() {
        ErrorKind::NotFound => format!("its folder {folder:?} does not exist; create it, or save elsewhere"),
        ErrorKind::NotADirectory => format!("{folder:?} is not a directory; save to a file in one"),
        _ => return unreachable(given, error),
    };
    refused(given, problem, Some(error))
}

/// The error for a path that the system does not follow.
fn unreachable(given: &Path, error: io::Error) -> Error {
    let problem = match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => "its symbolic links form a loop, or are too many; correct the links",
        Some(Errno::NOTDIR) => {
            "a part of the path before its last is a file, expected directories; correct the path"
        }
        Some(Errno::NAMETOOLONG) => {
            "a name in the path, or all of it, is too long for the file system; shorten it"
        }
        Some(Errno::ACCESS) => {
            "this user may not search a directory on the way, or follow a link there; give the permission, or save elsewhere"
        }
        _ => return failed(given, "look at", error),
    };
    refused(given, problem.into(), Some(error))
}

fn refused(path: &Path, problem: String, source: Option<io::Error>) -> Error {
    Error::Target { path: path.into(), problem, source }
}

fn failed(path: &Path, operation: &'static str, source: io::Error) -> Error {
    Error::Io { operation, path: path.into(), source }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
