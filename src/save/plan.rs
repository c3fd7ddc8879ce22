//! Which tensor goes into which file, and what the files' headers say. Pure: no I/O.
//!
//! # Invariants
//! - **E1** Each entry is in exactly one shard.
//! - **E2** What the same entries and options come to is the same each time, but for the name of a set.
//! - **E3** Entries of a file lie one after the other from the end of its header on, wider types first and booleans last, so that each begins at a multiple
//!   of its elements' size wherever the header ends at one. Those of types of one width keep the order in which they were given.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tensorhold_allocator::Quoted;

use super::entry::Entry;
use super::set;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::{MAX_HEADER_LEN, METADATA};
use crate::weights::Metadata;

/// The most shards that names have room for.
const MAX_SHARDS: usize = 99_999;

/// Headers end at a multiple of this, unless it is said otherwise: no element is larger.
const HEADER_ALIGN: u64 = 8;

/// The names of the files of a set, `{base}-00001-of-0000N.safetensors` and so on.
///
/// # Errors
/// When it is not 1 to 99,999 files.
pub fn shard_paths(base: impl AsRef<Path>, shards: usize) -> Result<Vec<PathBuf>> {
    if !(1..=MAX_SHARDS).contains(&shards) {
        return Err(Error::Option {
            option: "num_shards",
            got: shards.to_string(),
            expected: format!("1 to {MAX_SHARDS}"),
            remedy: "divide the tensors among as many files as are read or written at once".into(),
        });
    }
    let path = |number: usize| {
        let mut name = base.as_ref().as_os_str().to_owned();
        name.push(format!("-{number:05}-of-{shards:05}.safetensors"));
        PathBuf::from(name)
    };
    Ok((1..=shards).map(path).collect())
}

/// Divides tensors of these sizes among so many shards, of about the same size: the largest first, each to the shard that is the lightest by then; of several
/// equals the first. The longest shard is at most 4/3 as long as the best there could be (R. L. Graham, Bounds on Multiprocessing Timing Anomalies,
/// SIAM J. Appl. Math. 17, 1969). Returns the numbers of the tensors, by shard.
pub fn balance(bytes: &[u64], shards: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..bytes.len()).collect();
    order.sort_by_key(|&number| Reverse(bytes[number]));
    let mut lightest: BinaryHeap<_> = (0..shards).map(|shard| Reverse((0_u64, shard))).collect();
    let mut parts = vec![Vec::new(); shards];
    for number in order {
        let Some(Reverse((filled, shard))) = lightest.pop() else { break };
        parts[shard].push(number);
        lightest.push(Reverse((filled.saturating_add(bytes[number]), shard)));
    }
    parts
}

/// What the files of a set have beside tensors. Options are chained by value.
#[derive(Clone)]
pub struct PlanOptions {
    /// `None`: files have none, unless the options below give them some.
    metadata: Option<Metadata>,
    first_metadata: Metadata,
    shard_metadata: Option<Arc<ShardMetadata>>,
    header_align: u64,
    set: Option<String>,
}

type ShardMetadata = dyn Fn(usize, &[&Entry]) -> Metadata + Send + Sync;

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            metadata: None,
            first_metadata: Metadata::new(),
            shard_metadata: None,
            header_align: HEADER_ALIGN,
            set: None,
        }
    }
}

impl fmt::Debug for PlanOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanOptions")
            .field("metadata", &self.metadata)
            .field("header_align", &self.header_align)
            .field("set", &self.set)
            .finish_non_exhaustive()
    }
}

impl PlanOptions {
    /// No strings, and headers that end at a multiple of 8 bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The strings of each file, as its `__metadata__`, also where they are empty. A file without any strings of this or another option has no
    /// `__metadata__`.
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// More strings for the first file.
    pub fn first_metadata(mut self, metadata: Metadata) -> Self {
        self.first_metadata = metadata;
        self
    }

    /// More strings for each file: the function is given the number of the shard, from 0 on, and what is in it.
    pub fn shard_metadata(
        mut self,
        of: impl Fn(usize, &[&Entry]) -> Metadata + Send + Sync + 'static,
    ) -> Self {
        self.shard_metadata = Some(Arc::new(of));
        self
    }

    /// The length of a header is a multiple of so many bytes, itself a multiple of 8. Default: 8.
    pub fn header_align(mut self, bytes: u64) -> Self {
        self.header_align = bytes;
        self
    }

    /// Marks the files as those of a set, which [`validate_shard_set`](super::validate_shard_set) checks. Each time that a set is written it is to have another name.
    pub fn shard_set(mut self, name: impl Into<String>) -> Self {
        self.set = Some(name.into());
        self
    }

    /// The strings of shard `number` of `shards`.
    fn strings(&self, number: usize, shards: usize, entries: &[&Entry]) -> Result<Option<Metadata>> {
        let mut metadata = self.metadata.clone().unwrap_or_default();
        if number == 0 {
            metadata.extend(self.first_metadata.clone());
        }
        metadata.extend(self.shard_metadata.iter().flat_map(|of| of(number, entries)));
        if let Some(name) = &self.set {
            for (key, value) in set::mark(name, number, shards) {
                if let Some(other) = metadata.insert(key.into(), value) {
                    return Err(Error::Option {
                        option: "metadata",
                        got: format!("the key {key:?}, for {}", Quoted(other)),
                        expected: "other keys: this one is reserved for the mark of a set".into(),
                        remedy: "name it otherwise, or write no set".into(),
                    });
                }
            }
        }
        Ok((self.metadata.is_some() || !metadata.is_empty()).then_some(metadata))
    }
}

/// A file that is to be written: its header, and where each tensor goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPlan {
    pub(super) path: PathBuf,
    entries: Vec<Entry>,
    /// With its length before it.
    header: Vec<u8>,
    total_bytes: u64,
}

impl ShardPlan {
    /// A file with these entries, in this order, and these strings: without `__metadata__` for `None`, with an empty one for an empty map. The length of its header is a multiple of `header_align` bytes.
    ///
    /// # Errors
    /// When two entries have the same name, `header_align` is not a multiple of 8, or the header is longer than the format allows.
    pub fn new(
        path: impl Into<PathBuf>,
        entries: Vec<Entry>,
        metadata: Option<&Metadata>,
        header_align: u64,
    ) -> Result<Self> {
        if header_align == 0 || !header_align.is_multiple_of(8) {
            return Err(Error::Option {
                option: "header_align",
                got: header_align.to_string(),
                expected: "a positive multiple of 8".into(),
                remedy: "leave it unset for 8".into(),
            });
        }
        check_names(&entries)?;
        let (path, mut text, mut end) = (path.into(), String::from("{"), 0_u64);
        if let Some(metadata) = metadata {
            text.push_str(&format!("{}:{}", json!(METADATA), json!(metadata)));
        }
        for entry in &entries {
            let start = end;
            end =
                start.checked_add(entry.nbytes()).ok_or_else(|| too_long(&path, "2^64 bytes of tensors"))?;
            let (name, dtype) = (json!(entry.name()), json!(entry.dtype().name()));
            let (shape, offsets) = (json!(entry.shape()), json!([start, end]));
            let separator = if text.len() > 1 { "," } else { "" };
            let tensor =
                format!(r#"{separator}{name}:{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}"#);
            text.push_str(&tensor);
        }
        text.push('}');
        let length = (text.len() as u64).checked_next_multiple_of(header_align);
        let length = length
            .filter(|length| *length <= MAX_HEADER_LEN)
            .ok_or_else(|| too_long(&path, &format!("a header of {} bytes or more", text.len())))?;
        let mut header = length.to_le_bytes().to_vec();
        header.extend(text.as_bytes());
        header.resize(8 + length as usize, b' ');
        let total_bytes = end.checked_add(header.len() as u64);
        let total_bytes = total_bytes.ok_or_else(|| too_long(&path, "2^64 bytes"))?;
        Ok(Self { path, entries, header, total_bytes })
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors, in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Its first bytes: the length of the header, and the header.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Where the bytes of an entry go, from the start of the file, by its number in [`entries`](Self::entries).
    pub fn range(&self, entry: usize) -> Option<Range<u64>> {
        let before = self.entries.get(..entry)?.iter().map(Entry::nbytes).sum::<u64>();
        let start = self.header.len() as u64 + before;
        Some(start..start + self.entries.get(entry)?.nbytes())
    }

    /// All of [`range`](Self::range), in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.entries.iter().scan(self.header.len() as u64, |next, entry| {
            let start = *next;
            *next += entry.nbytes();
            Some(start..*next)
        })
    }

    /// How long the file will be, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }
}

/// Divides entries among files, one for each path, by [`balance`]. In each file those with wider elements come first.
///
/// # Errors
/// When there are no paths or two are the same, two entries have the same name, or a header cannot be as is asked.
pub fn plan_shards(entries: &[Entry], paths: &[PathBuf], options: &PlanOptions) -> Result<Vec<ShardPlan>> {
    let distinct: BTreeSet<&PathBuf> = paths.iter().collect();
    if paths.is_empty() || distinct.len() < paths.len() {
        return Err(Error::Option {
            option: "paths",
            got: format!("{} paths, {} of them distinct", paths.len(), distinct.len()),
            expected: "one or more paths, each there once".into(),
            remedy: "make them by shard_paths()".into(),
        });
    }
    check_names(entries)?;
    let sizes: Vec<u64> = entries.iter().map(Entry::nbytes).collect();
    let parts = balance(&sizes, paths.len()).into_iter().zip(paths).enumerate();
    let plan = |(number, (mut part, path)): (usize, (Vec<usize>, &PathBuf))| {
        part.sort_unstable();
        plan_shard(part.iter().map(|&entry| &entries[entry]).collect(), path, number, paths.len(), options)
    };
    parts.map(plan).collect()
}

/// Plans shard `number` of `shards`, with these entries, in the order in which they were given.
pub(super) fn plan_shard(
    mut entries: Vec<&Entry>,
    path: &Path,
    number: usize,
    shards: usize,
    options: &PlanOptions,
) -> Result<ShardPlan> {
    // E3: a stable sort.
    entries.sort_by_key(|entry| Reverse(width(entry.dtype())));
    let metadata = options.strings(number, shards, &entries)?;
    ShardPlan::new(path, entries.into_iter().cloned().collect(), metadata.as_ref(), options.header_align)
}

/// What E3 sorts by. Booleans, which can begin anywhere, come last, as in the files of the `safetensors` crate.
fn width(dtype: DType) -> u32 {
    if dtype == DType::BOOL { 0 } else { dtype.bits() }
}

fn check_names(entries: &[Entry]) -> Result<()> {
    let mut names = HashSet::with_capacity(entries.len());
    match entries.iter().find(|entry| !names.insert(entry.name())) {
        Some(twice) => Err(Error::Tensor {
            operation: "save",
            name: twice.name().into(),
            got: "two tensors of that name".into(),
            expected: "one of each name".into(),
            remedy: "leave out or rename one of them".into(),
        }),
        None => Ok(()),
    }
}

fn too_long(path: &Path, got: &str) -> Error {
    // A file in memory has no path.
    let file = if path.as_os_str().is_empty() { "a file in memory".into() } else { format!("{path:?}") };
    Error::Option {
        option: "tensors",
        got: format!("{got} for {file}"),
        expected: format!("a header of at most {MAX_HEADER_LEN} bytes, as the format has it"),
        remedy: "divide them among more files".into(),
    }
}
