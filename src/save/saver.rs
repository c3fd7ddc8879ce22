//! [`Saver`]: all of it at once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::iter;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::json;

use super::draft::{Draft, Durability};
use super::entry::{Entry, Item};
use super::fill::{self, Part};
use super::plan::{PlanOptions, ShardPlan, balance, plan_shards, shard_paths};
use super::serialized::Serialized;
use crate::error::{Error, Result};
use crate::weights::Metadata;

/// More threads than this gain nothing: they write into the page cache, or wait for one disk.
const MAX_THREADS: usize = 8;

/// Files have at most so many bytes of tensors, by default.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes tensors to a file or a set of files. Options are chained by value.
#[derive(Debug, Clone)]
#[must_use = "nothing is written before `save` is called"]
pub struct Saver {
    sizes: Sizes,
    plan: PlanOptions,
    set: Set,
    threads: Option<usize>,
    min_free_bytes: u64,
    durability: Durability,
    index: Index,
}

/// How many shards there are.
#[derive(Debug, Clone, Copy)]
enum Sizes {
    Shards(usize),
    AtMost(u64),
}

/// Whether files are marked as those of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Marked,
    Unmarked,
}

/// Whether there is an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Index {
    None,
    Beside,
}

/// What has been written. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// The files, in the order of their numbers.
    pub files: Vec<PathBuf>,
    /// The index, if one was asked for.
    pub index: Option<PathBuf>,
    /// How many tensors there are.
    pub tensors: usize,
    /// Bytes of those tensors.
    pub bytes: u64,
}

impl Default for Saver {
    fn default() -> Self {
        Self::new()
    }
}

impl Saver {
    /// Files of at most 5 GB of tensors each, without strings or an index.
    pub fn new() -> Self {
        Self {
            sizes: Sizes::AtMost(SHARD_BYTES),
            plan: PlanOptions::new(),
            set: Set::Unmarked,
            threads: None,
            min_free_bytes: 0,
            durability: Durability::default(),
            index: Index::None,
        }
    }

    /// Divides the tensors among so many files of about the same size, 1 to 99,999. Where there are fewer tensors, some are empty.
    pub fn shards(mut self, shards: usize) -> Self {
        self.sizes = Sizes::Shards(shards);
        self
    }

    /// Divides the tensors among as few files as [`balance`] needs for at most so many bytes of tensors each. A larger tensor is a file of its own.
    pub fn max_shard_bytes(mut self, bytes: u64) -> Self {
        self.sizes = Sizes::AtMost(bytes);
        self
    }

    /// The strings of each file; see [`PlanOptions::metadata`].
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.plan = self.plan.metadata(metadata);
        self
    }

    /// More strings for the first file.
    pub fn first_metadata(mut self, metadata: Metadata) -> Self {
        self.plan = self.plan.first_metadata(metadata);
        self
    }

    /// More strings for each file; see [`PlanOptions::shard_metadata`].
    pub fn shard_metadata(
        mut self,
        of: impl Fn(usize, &[&Entry]) -> Metadata + Send + Sync + 'static,
    ) -> Self {
        self.plan = self.plan.shard_metadata(of);
        self
    }

    /// The length of a header is a multiple of so many bytes, itself a multiple of 8. Default: 8.
    pub fn header_align(mut self, bytes: u64) -> Self {
        self.plan = self.plan.header_align(bytes);
        self
    }

    /// Marks the files as those of one set, which has a name of its own each time, for [`validate_shard_set`](super::validate_shard_set).
    pub fn mark_set(mut self) -> Self {
        self.set = Set::Marked;
        self
    }

    /// How many threads write, 1 to 1024. Default: one for each core, at most 8. Each has a buffer of 4 MiB where it needs one.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// So many bytes are to stay free in the file system. That is checked before anything is written, where the file system says how much is free. Default: 0.
    pub fn min_free_bytes(mut self, bytes: u64) -> Self {
        self.min_free_bytes = bytes;
        self
    }

    /// When files count as written. Default: [`Durability::Cached`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Writes an index beside the files, `{base}.safetensors.index.json`, which says where each tensor is.
    pub fn index(mut self) -> Self {
        self.index = Index::Beside;
        self
    }

    /// Writes tensors to files that are called `{base}-00001-of-0000N.safetensors` and so on. Regular files of those names are replaced; files of an
    /// older set that have other names stay.
    ///
    /// A new file keeps the permissions of the one that it replaces, and its owner and group where the system allows that. Symbolic links are followed: what
    /// they lead to is replaced. Of a file with several names (hard links) only the given one gets the new content.
    ///
    /// # Errors
    /// [`Error::Target`] before anything is written when a path leads to something other than a regular file or a new name in an existing folder, or to where
    /// this user may not write. When options or tensors cannot be followed, there is not enough space, a source fails, or the system does. No file is
    /// left then.
    pub fn save<'a>(
        &self,
        base: impl AsRef<Path>,
        items: impl IntoIterator<Item = Item<'a>>,
    ) -> Result<Saved> {
        let items: Vec<Item<'a>> = items.into_iter().collect();
        let paths = shard_paths(&base, self.count(&items))?;
        let mut index = base.as_ref().as_os_str().to_owned();
        index.push(".safetensors.index.json");
        self.save_to(&paths, &items, index.into())
    }

    /// Writes tensors to one file, whatever their size.
    ///
    /// # Errors
    /// As [`save`](Self::save), and when an index is asked for, which is for files that have numbers.
    pub fn save_file<'a>(
        &self,
        path: impl Into<PathBuf>,
        items: impl IntoIterator<Item = Item<'a>>,
    ) -> Result<Saved> {
        self.check_no_index()?;
        let items: Vec<Item<'a>> = items.into_iter().collect();
        self.save_to(&[path.into()], &items, PathBuf::new())
    }

    /// Plans a file in memory. [`threads`](Self::threads), [`min_free_bytes`](Self::min_free_bytes) and [`durability`](Self::durability) do not matter here.
    ///
    /// # Errors
    /// When options or tensors cannot be followed, and when an index is asked for.
    pub fn serialize<'a>(&self, items: impl IntoIterator<Item = Item<'a>>) -> Result<Serialized<'a>> {
        self.check_no_index()?;
        Serialized::new(items.into_iter().collect(), &self.plan())
    }

    /// Refuses an index where there is one file.
    fn check_no_index(&self) -> Result<()> {
        match self.index {
            Index::None => Ok(()),
            Index::Beside => Err(Error::Option {
                option: "index",
                got: "an index of one file".into(),
                expected: "one of the files of save()".into(),
                remedy: "leave it out: the file says what is in it".into(),
            }),
        }
    }

    /// The options of the files; a set that is marked gets a name.
    fn plan(&self) -> Cow<'_, PlanOptions> {
        match self.set {
            Set::Marked => Cow::Owned(self.plan.clone().shard_set(set_name())),
            Set::Unmarked => Cow::Borrowed(&self.plan),
        }
    }

    fn save_to(&self, paths: &[PathBuf], items: &[Item<'_>], index: PathBuf) -> Result<Saved> {
        let threads = self.writers()?;
        let entries: Vec<Entry> = items.iter().map(|item| item.entry.clone()).collect();
        let index = (self.index == Index::Beside).then_some(index);
        let others: Vec<&Path> = index.as_deref().into_iter().collect();
        let plans = plan_shards(&entries, paths, &self.plan())?;
        let draft = Draft::create_with(plans, &others, self.min_free_bytes)?;
        let by_name: BTreeMap<&str, &Item<'_>> = items.iter().map(|item| (item.entry.name(), item)).collect();
        let parts: Vec<Part<'_, '_>> = draft
            .plans()
            .iter()
            .enumerate()
            .flat_map(|(shard, plan)| {
                let with_ranges = plan.entries().iter().zip(plan.ranges());
                let by_name = &by_name;
                with_ranges.filter_map(move |(entry, range)| {
                    let Item { entry, source } = by_name.get(entry.name())?;
                    Some(Part { shard, range, entry, source })
                })
            })
            .collect();
        fill::fill(&draft, &parts, threads)?;
        let bytes = entries.iter().map(Entry::nbytes).sum();
        if let Some(index) = &index {
            draft.write_other(0, index, index_text(draft.plans(), bytes).as_bytes())?;
        }
        let files = draft.commit(self.durability)?;
        tracing::debug!(bytes, files = files.len(), "saved");
        Ok(Saved { files, index, tensors: entries.len(), bytes })
    }

    /// How many files these need: the fewest up to 32 of them, and of more at most a thirty-second more than the fewest.
    fn count(&self, items: &[Item<'_>]) -> usize {
        let most = match self.sizes {
            Sizes::Shards(shards) => return shards,
            Sizes::AtMost(bytes) => bytes,
        };
        let sizes: Vec<u64> = items.iter().map(|item| item.entry.nbytes()).collect();
        let total = sizes.iter().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        let longest = sizes.iter().copied().max().unwrap_or_default().max(most).max(1);
        let fits = |shards: usize| {
            let parts = balance(&sizes, shards);
            // `None` where they are more than there are numbers.
            let bytes = |part: &[usize]| part.iter().try_fold(0_u64, |sum, &n| sum.checked_add(sizes[n]));
            // One that is longer by itself is no reason for more.
            parts.iter().all(|part| part.len() <= 1 || bytes(part).is_some_and(|bytes| bytes <= most))
        };
        let least = usize::try_from(total.div_ceil(longest)).unwrap_or(usize::MAX).max(1);
        // With as many as there are tensors, each is a file of its own.
        let next = |shards: &usize| Some(shards.saturating_add((shards / 32).max(1)));
        let mut counts = iter::successors(Some(least), next).take_while(|&shards| shards < sizes.len());
        counts.find(|&shards| fits(shards)).unwrap_or(sizes.len().max(1))
    }

    fn writers(&self) -> Result<usize> {
        let cores = || thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        match self.threads.unwrap_or_else(cores) {
            threads @ 1..=1024 => Ok(threads),
            other => Err(Error::Option {
                option: "threads",
                got: other.to_string(),
                expected: "1 to 1024".into(),
                remedy: "leave it unset for one a core".into(),
            }),
        }
    }
}

/// A name that no other set has: two numbers of 64 bits, made of keys that the system's randomness is in.
fn set_name() -> String {
    let number = |what: u8| RandomState::new().hash_one(what);
    format!("{:016x}{:016x}", number(0), number(1))
}

/// What an index says, as other programs write it.
fn index_text(plans: &[ShardPlan], bytes: u64) -> String {
    let names = plans.iter().flat_map(|plan| {
        let file = plan.path().file_name().unwrap_or_default().to_string_lossy();
        plan.entries().iter().map(move |entry| (entry.name(), file.clone()))
    });
    let weight_map: BTreeMap<&str, _> = names.collect();
    format!("{:#}\n", json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    fn count(saver: &Saver, sizes: &[usize]) -> usize {
        let items: Vec<Item<'_>> = sizes
            .iter()
            .enumerate()
            .map(|(n, &size)| {
                Item::fill(Entry::new(format!("t{n}"), DType::U8, &[size]).unwrap(), |_, _| Ok(()))
            })
            .collect();
        saver.count(&items)
    }

    #[test]
    fn there_are_as_few_files_as_hold_the_tensors() {
        let at_most = |bytes| Saver::new().max_shard_bytes(bytes);
        assert_eq!(count(&at_most(100), &[60, 40, 60, 40]), 2);
        assert_eq!(count(&at_most(99), &[60, 40, 60, 40]), 3);
        assert_eq!(count(&at_most(100), &[500, 100]), 2);
        assert_eq!(count(&at_most(100), &[500, 50, 50]), 2);
        assert_eq!(count(&at_most(0), &[5, 0, 5]), 3);
        assert_eq!(count(&at_most(100), &[]), 1);
        assert_eq!(count(&at_most(u64::MAX), &[1 << 60; 64]), 5);
        assert_eq!(count(&Saver::new().shards(7), &[1]), 7);
    }

    #[test]
    fn each_set_has_a_name_of_its_own() {
        assert_ne!(set_name(), set_name());
        assert_eq!(set_name().len(), 32);
    }
}
