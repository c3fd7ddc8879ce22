//! [`Draft`]: files that are not there yet.
//!
//! # Invariants
//! - **A1** Until a draft is committed, its files have names of their own, beside where they will be, and go with it.
//! - **A2** Files appear under their names when all of their bytes have been written. If one cannot, none stays.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::{Errno, retry_on_intr};
use tempfile::NamedTempFile;
use tensorhold_allocator::Process;

use super::plan::ShardPlan;
use crate::error::{Error, Result};
use crate::fork;

/// So many bytes of a file's name are in the name that it has until it is whole.
const LONGEST: usize = 200;

/// When files count as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Durability {
    /// When the system has their bytes, which are lost if the machine stops before it has written them back.
    #[default]
    Cached,
    /// When they are on the disk, with their names.
    Synced,
}

/// The files of a plan, of their full length, with their headers, under other names: beside where they will be, and ending in `.tmp`. What is
/// not committed is removed when the draft is dropped; a process that is killed leaves it behind. A forked child may write to the files of its parent. It
/// cannot commit them, and its drop does not remove them.
#[derive(Debug)]
pub struct Draft {
    plans: Vec<ShardPlan>,
    /// One for each plan.
    files: Vec<NamedTempFile>,
    /// Other files, and where they will be.
    others: Vec<(PathBuf, NamedTempFile)>,
    /// Whose files they are.
    process: Process,
}

impl Draft {
    /// Makes the files, if there is room for them and `min_free_bytes` more in the file systems of their folders, which have to exist.
    ///
    /// # Errors
    /// When two plans name one file, there is not enough space, or the system refuses a file.
    pub fn create(plans: Vec<ShardPlan>, min_free_bytes: u64) -> Result<Self> {
        check_space(&plans, min_free_bytes)?;
        let (files, process) = (Vec::with_capacity(plans.len()), Process::current());
        let mut draft = Self { files, plans, others: Vec::new(), process };
        for plan in &draft.plans {
            let file = temporary(plan.path())?;
            let all = || fallocate(file.as_file(), FallocateFlags::empty(), 0, plan.total_bytes());
            // A signal ends it in the middle, on tmpfs for one.
            match retry_on_intr(all) {
                // The file system cannot: then writes find out whether there is room.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => file
                    .as_file()
                    .set_len(plan.total_bytes())
                    .map_err(|source| io_error("lengthen", plan.path(), source))?,
                Err(Errno::NOSPC) => {
                    let folder = folder_of(plan.path());
                    let (needed, spare) = (plan.total_bytes(), min_free_bytes);
                    return Err(Error::Space { folder: folder.into(), needed, spare, free: free(folder)? });
                }
                done => done.map_err(|error| io_error("make room for", plan.path(), error.into()))?,
            }
            write(file.as_file(), plan.path(), plan.header(), 0)?;
            draft.files.push(file);
        }
        Ok(draft)
    }

    /// What is to be written.
    pub fn plans(&self) -> &[ShardPlan] {
        &self.plans
    }

    /// Where the files are for now, in the order of [`plans`](Self::plans): for those who map them and write there.
    pub fn temporary_paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(NamedTempFile::path)
    }

    /// Writes bytes of a shard, from `offset` in its file on. Threads may write at once.
    ///
    /// # Errors
    /// When there is no such shard, the bytes do not lie within its file and behind its header, or the system fails to write.
    pub fn write_at(&self, shard: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some((plan, file)) = self.plans.get(shard).zip(self.files.get(shard)) else {
            return Err(Error::Option {
                option: "shard",
                got: shard.to_string(),
                expected: format!("one of {} from 0 on", self.plans.len()),
                remedy: "use the numbers of plans()".into(),
            });
        };
        let (header, total) = (plan.header().len() as u64, plan.total_bytes());
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= total);
        if offset < header || end.is_none() {
            return Err(Error::Option {
                option: "offset",
                got: format!("{} bytes from {offset} on", bytes.len()),
                expected: format!("bytes within {header}..{total} of {:?}", plan.path()),
                remedy: "use the ranges of the plan".into(),
            });
        }
        write(file.as_file(), plan.path(), bytes, offset)
    }

    /// Adds a file that is no shard.
    pub(super) fn add(&mut self, path: PathBuf, bytes: &[u8]) -> Result<()> {
        let file = temporary(&path)?;
        write(file.as_file(), &path, bytes, 0)?;
        self.others.push((path, file));
        Ok(())
    }

    /// Gives the files their names; files that have them are replaced. Returns the paths of the shards.
    ///
    /// # Errors
    /// When the system fails to write files back or to name one. None is left then: also not those that one of these has replaced already. And in a forked
    /// child of the process that made the draft, which keeps its files.
    pub fn commit(mut self, durability: Durability) -> Result<Vec<PathBuf>> {
        fork::check(self.process, "commit files")?;
        let (plans, files) = (mem::take(&mut self.plans), mem::take(&mut self.files));
        let others = mem::take(&mut self.others);
        let paths: Vec<PathBuf> = plans.into_iter().map(|plan| plan.path).collect();
        let all: Vec<_> = paths.iter().cloned().zip(files).chain(others).collect();
        if durability == Durability::Synced {
            let sync = |(path, file): &(PathBuf, NamedTempFile)| {
                file.as_file().sync_all().map_err(|source| io_error("write back", path, source))
            };
            all.iter().try_for_each(sync)?;
        }
        let mut named = Named::default();
        for (path, file) in all {
            file.persist(&path).map_err(|error| io_error("rename to", &path, error.error))?;
            named.0.push(path);
        }
        if durability == Durability::Synced {
            for path in &named.0 {
                let folder = folder_of(path);
                let synced = File::open(folder).and_then(|folder| folder.sync_all());
                synced.map_err(|source| io_error("write back", folder, source))?;
            }
        }
        // All is well: they stay.
        named.0.clear();
        Ok(paths)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.process.is_current() {
            let others = self.others.iter_mut().map(|(_, file)| file);
            self.files.iter_mut().chain(others).for_each(|file| file.disable_cleanup(true));
        }
    }
}

/// Files that have their names, and are removed unless all are well (A2).
#[derive(Default)]
struct Named(Vec<PathBuf>);

impl Drop for Named {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(?path, %error, "a file of a set that failed could not be removed");
            }
        }
    }
}

/// A new file beside where it will be.
fn temporary(path: &Path) -> Result<NamedTempFile> {
    // What is added to a name must leave it one that the file system allows.
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut prefix = OsStr::from_bytes(name.get(..LONGEST).unwrap_or(name)).to_owned();
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    // As any file: what others may do with it is for the system's mask to say.
    builder.prefix(&prefix).suffix(".tmp").permissions(Permissions::from_mode(0o666));
    builder.tempfile_in(folder_of(path)).map_err(|source| io_error("create", path, source))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write(file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(bytes, offset).map_err(|source| Error::Write {
        path: path.into(),
        offset,
        bytes: bytes.len() as u64,
        source,
    })
}

/// Checks that no two plans are of one file, and that each file system has room for what goes there.
fn check_space(plans: &[ShardPlan], spare: u64) -> Result<()> {
    let mut systems: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    let mut places = BTreeMap::new();
    for plan in plans {
        let folder = folder_of(plan.path());
        let place = fs::metadata(folder).map_err(|source| io_error("open", folder, source))?;
        // One of the two would replace the other when they get their names.
        if let Some(other) = places.insert((place.dev(), place.ino(), plan.path().file_name()), plan.path()) {
            return Err(Error::Option {
                option: "paths",
                got: format!("{other:?} and {:?}, which are one file", plan.path()),
                expected: "a file for each shard".into(),
                remedy: "make them by shard_paths()".into(),
            });
        }
        let (_, needed) = systems.entry(place.dev()).or_insert((folder, 0));
        *needed = needed.saturating_add(plan.total_bytes());
    }
    for (folder, needed) in systems.into_values() {
        let free = free(folder)?;
        if needed.saturating_add(spare) > free {
            return Err(Error::Space { folder: folder.into(), needed, spare, free });
        }
    }
    Ok(())
}

/// Bytes that this user may still write there.
fn free(folder: &Path) -> Result<u64> {
    let system = statvfs(folder).map_err(|error| io_error("look at", folder, error.into()))?;
    Ok(system.f_bavail.saturating_mul(system.f_frsize))
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { operation, path: path.into(), source }
}
