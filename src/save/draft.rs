//! [`Draft`]: files that are not there yet.
//!
//! # Invariants
//! - **A1** Until a draft is committed, its files have names of their own, beside where they will be, and go with it.
//! - **A2** Files appear under their names when all of their bytes have been written. If one cannot, none stays, and the files that they replaced are back;
//!   but on a file system that cannot exchange two files, a file that has replaced another stays.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};
use tensorhold_allocator::Process;

use super::placed::Placed;
use super::plan::ShardPlan;
use super::space;
use super::target::Target;
use super::temporary::{OpenFiles, Temporary};
use crate::error::{Error, Result};
use crate::fork;

/// When files count as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Durability {
    /// When the system has their bytes, which are lost if the machine stops before it has written them back.
    #[default]
    Cached,
    /// When they are on the disk, with their names.
    Synced,
}

/// The files of a plan, of their full length, with their headers, under other names: in the folder where they will be, and ending in `.tmp`. What is
/// not committed is removed when the draft is dropped; a process that is killed leaves it behind. A forked child may write to the files of its parent. It
/// cannot commit them, and its drop does not remove them.
///
/// However many files there are, at most 16 of them are open at a time.
#[derive(Debug)]
pub struct Draft {
    plans: Vec<ShardPlan>,
    /// One for each plan, and then others.
    files: Vec<Temporary>,
    open: OpenFiles,
    /// Whose files they are.
    process: Process,
}

impl Draft {
    /// Looks at the paths of the plans, and makes the files if there is room for them and `min_free_bytes` more in the file systems of their folders.
    ///
    /// Symbolic links are followed, and what they lead to will be replaced. Where a file system does not say how much is free, the system finds out
    /// whether there is room when files are made or written to.
    ///
    /// # Errors
    /// [`Error::Target`] when a path leads to something other than a regular file or a new name in an existing folder, or to where this user may not
    /// write; when two plans name one file, there is not enough space, or the system refuses a file.
    pub fn create(plans: Vec<ShardPlan>, min_free_bytes: u64) -> Result<Self> {
        Self::create_with(plans, &[], min_free_bytes)
    }

    /// The same, with files that are no shards, and are empty so far.
    pub(super) fn create_with(plans: Vec<ShardPlan>, others: &[&Path], min_free_bytes: u64) -> Result<Self> {
        let paths = plans.iter().map(ShardPlan::path).chain(others.iter().copied());
        let targets = paths.map(Target::look).collect::<Result<Vec<_>>>()?;
        check_distinct(&targets)?;
        space::check(targets.iter().zip(plans.iter().map(ShardPlan::total_bytes)), min_free_bytes)?;
        let files = Vec::with_capacity(targets.len());
        let mut draft = Self { plans, files, open: OpenFiles::default(), process: Process::current() };
        for (number, target) in targets.into_iter().enumerate() {
            let (made, file) = Temporary::create(target)?;
            if let Some(plan) = draft.plans.get(number) {
                make_room(&file, &made, plan, min_free_bytes)?;
                write(&file, plan.path(), plan.header(), 0)?;
            }
            draft.files.push(made);
        }
        Ok(draft)
    }

    /// What is to be written.
    pub fn plans(&self) -> &[ShardPlan] {
        &self.plans
    }

    /// Where the files are for now, in the order of [`plans`](Self::plans): for those who map them and write there.
    pub fn temporary_paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().take(self.plans.len()).map(Temporary::path)
    }

    /// Writes bytes of a shard, from `offset` in its file on. Threads may write at once.
    ///
    /// # Errors
    /// When there is no such shard, the bytes do not lie within its file and behind its header, another file has taken the name of the file, or the system
    /// fails to write.
    pub fn write_at(&self, shard: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(plan) = self.plans.get(shard) else {
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
        self.write_to(shard, plan.path(), bytes, offset)
    }

    /// Writes all of a file that is no shard, by its number among those.
    pub(super) fn write_other(&self, number: usize, path: &Path, bytes: &[u8]) -> Result<()> {
        self.write_to(self.plans.len() + number, path, bytes, 0)
    }

    fn write_to(&self, number: usize, path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
        let Some(made) = self.files.get(number) else { return Ok(()) };
        if !self.process.is_current() {
            // A thread that this process does not have may hold a lock of the open files.
            return write(&made.open()?, path, bytes, offset);
        }
        self.open.with(number, || made.open(), |file| write(file, path, bytes, offset))
    }

    /// Gives the files their names. A file that has the name is replaced: the new one keeps its permissions, and its owner and group where
    /// the system allows that. Returns the paths of the shards.
    ///
    /// All paths are looked at again first, and each once more just before its file gets the name. A file that is replaced is kept until all files have their
    /// names, and with [`Durability::Synced`] until their folders are written back.
    ///
    /// A file system that cannot exchange two files, such as NFS, replaces at once: there, something that takes a name between the last look and the
    /// renaming, which is the next system call, is lost.
    ///
    /// # Errors
    /// When a path no longer leads where it did, or to something other than a regular file, or the system fails to write files back or to
    /// name one. No new file is left then, and the replaced ones are back under their names. But where the file system cannot exchange files, those that have
    /// been replaced are gone, and the new ones stay. And in a forked child of the process that made the draft, which keeps its files.
    pub fn commit(mut self, durability: Durability) -> Result<Vec<PathBuf>> {
        fork::check(self.process, "commit files")?;
        let (plans, files) = (mem::take(&mut self.plans), mem::take(&mut self.files));
        let mut folders = BTreeMap::new();
        for made in &files {
            let file = made.prepare()?;
            if durability == Durability::Synced {
                file.sync_all().map_err(|source| io_error("write back", made.target().file(), source))?;
                // Opened before any file has its name: a user may be allowed to write to a folder, but not to open it.
                let folder = made.target().folder();
                if !folders.contains_key(folder) {
                    let open = File::open(folder).map_err(|source| io_error("write back", folder, source))?;
                    folders.insert(folder.to_owned(), open);
                }
            }
        }
        let mut placed = Set::default();
        for made in files {
            placed.0.push(made.place()?);
        }
        for (path, folder) in &folders {
            match folder.sync_all() {
                // Some file systems have nothing to write back for a folder.
                Err(error)
                    if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::OPNOTSUPP)) => {}
                synced => synced.map_err(|source| io_error("write back", path, source))?,
            }
        }
        // The set is complete: it stays.
        placed.0.clear();
        Ok(plans.into_iter().map(|plan| plan.path).collect())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.process.is_current() {
            self.files.iter_mut().for_each(Temporary::leave);
        }
    }
}

/// Files that have their names. Dropped before the set is complete, what was there before is put back (A2).
#[derive(Default)]
struct Set(Vec<Placed>);

impl Drop for Set {
    fn drop(&mut self) {
        self.0.drain(..).rev().for_each(Placed::undo);
    }
}

/// Gives a file its full length, and blocks of the file system where that can reserve them.
fn make_room(file: &File, made: &Temporary, plan: &ShardPlan, spare: u64) -> Result<()> {
    let needed = plan.total_bytes();
    // A signal ends it in the middle, on tmpfs for one.
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, needed)) {
        // The file system cannot: then writes find out whether there is room.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            file.set_len(needed).map_err(|source| io_error("lengthen", plan.path(), source))
        }
        Err(Errno::NOSPC) => match space::free_space(made.target().folder())? {
            Some(free) => Err(Error::Space { folder: made.target().folder().into(), needed, spare, free }),
            None => Err(io_error("make room for", plan.path(), Errno::NOSPC.into())),
        },
        done => done.map_err(|error| io_error("make room for", plan.path(), error.into())),
    }
}

fn write(file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(bytes, offset).map_err(|source| Error::Write {
        path: path.into(),
        offset,
        bytes: bytes.len() as u64,
        source,
    })
}

/// Checks that no two paths lead to one file: one would replace the other.
fn check_distinct(targets: &[Target]) -> Result<()> {
    let (mut places, mut files) = (BTreeMap::new(), BTreeMap::new());
    for target in targets {
        // Of one file with two names, each name would get a file of its own.
        let twice = places.insert(target.place(), target);
        if let Some(other) = twice.or(target.id().and_then(|id| files.insert(id, target))) {
            return Err(Error::Option {
                option: "paths",
                got: format!("{:?} and {:?}, which are one file", other.path(), target.path()),
                expected: "a file for each path".into(),
                remedy: "make them by shard_paths(), and remove links among them".into(),
            });
        }
    }
    Ok(())
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { operation, path: path.into(), source }
}
