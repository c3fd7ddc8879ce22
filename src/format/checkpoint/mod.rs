//! The one place that decides which files are a checkpoint: `docs/checkpoints.md` has the rules.
//!
//! A path is [resolved](Named::resolve) at once, with one listing of a folder; the [choice](Named::choose) among the sets of weights in it is made when
//! the variant is known. No file is opened here, and none is looked at by itself.

mod choice;
mod left_out;
mod names;
mod other;
mod sets;

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensorhold_allocator::Quoted;

use self::choice::Choice;
use self::names::Part;
use self::sets::{Set, group};
use crate::error::{Error, Result};

pub use self::left_out::LeftOut;
pub(crate) use self::left_out::as_text;
pub(super) use self::other::json_without_weights;
pub(super) use self::sets::List;

/// What a caller has named.
#[derive(Debug, Clone)]
pub(crate) enum Named {
    /// Files, which are loaded as they are.
    Files(Vec<PathBuf>),
    /// An index, and what is in its folder.
    Index(PathBuf, Arc<Listing>),
    /// A folder, and what is in it.
    Folder(PathBuf, Arc<Listing>),
}

/// What a folder holds, in the order of the names.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    folder: PathBuf,
    files: Vec<OsString>,
    indexes: Vec<OsString>,
    /// Names by which downloads of safetensors files or indexes are unfinished.
    unfinished: Vec<String>,
    /// Whether it is that of a pipeline, whose parts are several models.
    is_pipeline: bool,
}

/// Which files a checkpoint has.
#[derive(Debug, Clone)]
pub(crate) enum Shards {
    /// These, of those that are there.
    Files { files: Vec<PathBuf>, left_out: Vec<LeftOut> },
    /// Those that the index names: probably the ones `near` it.
    Index { path: PathBuf, near: Vec<PathBuf>, listing: Arc<Listing> },
}

impl Shards {
    /// The files that it has, as far as that is known before an index is read.
    pub(crate) fn likely(&self) -> &[PathBuf] {
        match self {
            Self::Files { files, .. } | Self::Index { near: files, .. } => files,
        }
    }
}

impl Named {
    /// Finds what `path` stands for: a folder; an index, by its ending, `.json`; or else a file. Links are followed.
    ///
    /// # Errors
    /// When the path is missing or unreadable, or a folder holds no weights.
    pub(crate) fn resolve(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path)
            .map_err(|source| with_link(Error::Io { operation: "open", path: path.into(), source }))?;
        if metadata.is_dir() {
            let listing = Listing::of(path).map_err(|source| Error::Io {
                operation: "list",
                path: path.into(),
                source,
            })?;
            if listing.files.is_empty() && listing.indexes.is_empty() {
                return Err(Error::Checkpoint { path: path.into(), problem: other::without_weights(path) });
            }
            return Ok(Self::Folder(path.into(), Arc::new(listing)));
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            // A folder that cannot be listed may hold files that can be opened.
            let listing = Listing::of(path.parent().unwrap_or(Path::new(""))).unwrap_or_default();
            return Ok(Self::Index(path.into(), Arc::new(listing)));
        }
        let control = names::control_file(path);
        if control.symlink_metadata().is_ok() {
            let problem = unfinished_problem(&path.to_string_lossy(), &control.to_string_lossy());
            return Err(Error::Checkpoint { path: path.into(), problem });
        }
        Ok(Self::Files(vec![path.into()]))
    }

    /// The files of the checkpoint, of this variant if one is wanted.
    ///
    /// # Errors
    /// When a folder holds no set of weights that is complete by the names of its files, or several of which none comes first; when a file or an index that was
    /// named is of another variant.
    pub(crate) fn choose(&self, wanted: Option<&str>) -> Result<Shards> {
        let wrong = |path: &Path, problem| Error::Checkpoint { path: path.into(), problem };
        match self {
            Self::Files(files) => {
                for file in files {
                    check_variant(file, wanted).map_err(|problem| wrong(file, problem))?;
                }
                Ok(Shards::Files { files: files.clone(), left_out: Vec::new() })
            }
            Self::Index(path, listing) => {
                check_variant(path, wanted).map_err(|problem| wrong(path, problem))?;
                Ok(listing.by_index(path.clone(), wanted))
            }
            Self::Folder(path, listing) => listing.choose(wanted).map_err(|problem| wrong(path, problem)),
        }
    }
}

/// Checks the variant of a file or index that was named.
fn check_variant(path: &Path, wanted: Option<&str>) -> Result<(), String> {
    let Some(wanted) = wanted else { return Ok(()) };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (file, index) = if names::is_index(&name) { (None, Some(&*name)) } else { (Some(&*name), None) };
    let (file, index): (Vec<_>, Vec<_>) = (file.into_iter().collect(), index.into_iter().collect());
    let sets = group(&file, &index, Some(wanted));
    match sets.first().and_then(|set| set.variant) {
        Some(variant) if variant == wanted => Ok(()),
        variant => Err(format!(
            "its name says {}, expected variant {}; leave the variant out, or name the folder",
            variant.map_or_else(|| "no variant".into(), |variant| format!("variant {}", Quoted(variant))),
            Quoted(wanted)
        )),
    }
}

impl Listing {
    fn of(folder: &Path) -> io::Result<Self> {
        let mut listing = Self { folder: folder.into(), ..Self::default() };
        let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        for entry in fs::read_dir(here)? {
            let name = entry?.file_name();
            let text = name.to_string_lossy();
            if names::is_file(&text) {
                listing.files.push(name);
            } else if names::is_index(&text) {
                listing.indexes.push(name);
            } else if names::unfinished(&text).is_some() {
                listing.unfinished.push(text.into_owned());
            } else if text == "model_index.json" {
                listing.is_pipeline = true;
            }
        }
        listing.files.sort_unstable();
        listing.indexes.sort_unstable();
        listing.unfinished.sort_unstable();
        Ok(listing)
    }

    /// Whether the folder itself holds a file of that name.
    pub(super) fn has(&self, file: &str) -> bool {
        self.files.binary_search_by(|name| name.as_os_str().cmp(file.as_ref())).is_ok()
    }

    /// The names of the indexes of safetensors files, in order, as text.
    pub(super) fn index_names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.indexes.iter().map(|name| name.to_string_lossy())
    }

    /// What is wrong where the download of one of these files is unfinished, by a file next to it.
    pub(super) fn unfinished<'a>(&self, files: impl IntoIterator<Item = &'a str>) -> Option<String> {
        if self.unfinished.is_empty() {
            return None;
        }
        files.into_iter().find_map(|file| {
            let by = self.unfinished.iter().find(|name| names::unfinished(name) == Some(file))?;
            Some(unfinished_problem(file, by))
        })
    }

    /// The names of the safetensors files, in order, as text.
    pub(super) fn names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.files.iter().map(|name| name.to_string_lossy())
    }

    /// The safetensors files, in the order of their names.
    pub(crate) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(|file| self.folder.join(file))
    }

    /// The names as text, in which bytes that are not UTF-8 are replaced.
    fn texts(&self) -> (Vec<Cow<'_, str>>, Vec<Cow<'_, str>>) {
        (self.names().collect(), self.index_names().collect())
    }

    /// Chooses among the sets in the folder.
    fn choose(self: &Arc<Self>, wanted: Option<&str>) -> Result<Shards, String> {
        let (files, indexes) = self.texts();
        let sets = group(&files, &indexes, wanted);
        let choice = Choice::of(&sets, wanted)?;
        if let [set] = choice.sets[..]
            && let Some(index) = set.indexes.first().and_then(|index| self.indexes.get(index.number))
        {
            let (path, near) = (self.folder.join(index), self.near(set, &sets));
            return Ok(Shards::Index { path, near, listing: Arc::clone(self) });
        }
        self.check_whole(&choice)?;
        let mut files: Vec<_> = choice.sets.iter().flat_map(|set| self.paths_of(set)).collect();
        files.sort_unstable();
        let left_out = choice.others.iter().flat_map(|set| {
            let why = choice.why_not(set);
            self.paths_of(set).map(move |path| LeftOut { path, why: why.clone() })
        });
        let mut left_out: Vec<_> = left_out.collect();
        left_out.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(Shards::Files { files, left_out })
    }

    /// Checks that the files of these sets, which no index names, are one model and all of it, by the other names in the folder.
    fn check_whole(&self, choice: &Choice<'_, '_>) -> Result<(), String> {
        let files = choice.sets.iter().flat_map(|set| &set.files).map(|(file, _)| file.name);
        // Of files of unknown stems each one counts.
        let counts_each = choice.sets.iter().all(|set| names::rank(set.stem).is_none());
        let missing = self.unfinished.iter().filter_map(|name| names::unfinished(name));
        let missing = missing.filter(|_| counts_each).filter(|name| !self.has(name));
        if let Some(problem) = self.unfinished(files.chain(missing)) {
            return Err(problem);
        }
        match &choice.sets[..] {
            [_, _, ..] if self.is_pipeline => Err(format!(
                "the folder is a pipeline (it has a model_index.json), and {} may be models of their own; name one of the files, or a \
                 folder of a part",
                List::new(choice.sets.iter().map(|set| set.stem))
            )),
            _ => Ok(()),
        }
    }

    /// The checkpoint of an index that was named.
    fn by_index(self: &Arc<Self>, path: PathBuf, wanted: Option<&str>) -> Shards {
        let (files, indexes) = self.texts();
        let sets = group(&files, &indexes, wanted);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let set = sets.iter().find(|set| set.indexes.iter().any(|index| index.name == name));
        let near = set.map_or_else(Vec::new, |set| self.near(set, &sets));
        Shards::Index { path, near, listing: Arc::clone(self) }
    }

    /// The files that an index of this set probably names: the shards, or else all whose names begin with its stem.
    fn near(&self, set: &Set<'_>, sets: &[Set<'_>]) -> Vec<PathBuf> {
        let shards = set.files.iter().filter(|(_, part)| matches!(part, Part::Shard { .. }));
        let mut near: Vec<_> = shards.filter_map(|(file, _)| self.path(file.number)).collect();
        if near.is_empty() {
            let alike =
                sets.iter().filter(|other| other.variant == set.variant && other.stem.starts_with(set.stem));
            near = alike.flat_map(|set| self.paths_of(set)).collect();
            near.sort_unstable();
        }
        near
    }

    fn path(&self, number: usize) -> Option<PathBuf> {
        Some(self.folder.join(self.files.get(number)?))
    }

    fn paths_of(&self, set: &Set<'_>) -> impl Iterator<Item = PathBuf> {
        set.files.iter().filter_map(|(file, _)| self.path(file.number))
    }
}

fn unfinished_problem(file: &str, by: &str) -> String {
    format!(
        "the download of {} is unfinished, by {} next to it; finish the download, or remove that file if it is left from an earlier one",
        Quoted(file),
        Quoted(by)
    )
}

/// An error of opening a file, which says so if it is a link to something that is not there.
pub(crate) fn with_link(error: Error) -> Error {
    let Error::Io { path, source, .. } = &error else { return error };
    let target = match source.kind() {
        io::ErrorKind::NotFound => fs::read_link(path).ok(),
        _ => None,
    };
    match target {
        Some(target) => {
            let problem =
                format!("it is a link to {target:?}, which is not there; fetch the file it stands for");
            Error::Checkpoint { path: path.clone(), problem }
        }
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> (tempfile::TempDir, Arc<Listing>) {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        let listing = Listing::of(folder.path()).unwrap();
        (folder, Arc::new(listing))
    }

    #[test]
    fn an_index_is_guessed_to_name_the_shards_of_its_set() {
        let near = |names: &[&str], index: &str| {
            let (folder, listing) = listing(names);
            let Shards::Index { near, .. } = listing.by_index(folder.path().join(index), None) else {
                panic!("it is an index")
            };
            near.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let index = "model.safetensors.index.json";
        let (one, two) = ("model-1-of-2.safetensors", "model-2-of-2.safetensors");
        let others = ["model.safetensors", "consolidated.safetensors", "model.fp16-1-of-1.safetensors"];
        assert_eq!(near(&[one, two, index, others[0], others[1], others[2]], index), [one, two]);
        assert_eq!(
            near(&["model-a.safetensors", others[0], others[1], index], index),
            ["model-a.safetensors", others[0]]
        );
        let index = "model.safetensors.index.fp16.json";
        assert_eq!(near(&[one, index, others[2]], index), [others[2]]);
        assert_eq!(near(&[one], "some.json"), [""; 0]);
    }

    #[test]
    fn names_that_begin_with_a_dot_are_no_part() {
        let (folder, listing) =
            listing(&["._model.safetensors", ".model.safetensors.index.json", "model.safetensors"]);
        assert_eq!((listing.files.len(), listing.indexes.len()), (1, 0));
        let Shards::Files { files, left_out } = listing.choose(None).unwrap() else {
            panic!("it has no index")
        };
        assert_eq!((files, left_out), (vec![folder.path().join("model.safetensors")], vec![]));
    }

    #[test]
    fn a_file_or_an_index_that_is_named_has_to_be_of_the_variant() {
        for (name, variant) in [
            ("model.fp16.safetensors", "fp16"),
            ("model.any-1-of-2.safetensors", "any"),
            ("model.safetensors.index.fp16.json", "fp16"),
        ] {
            assert_eq!(check_variant(Path::new(name), Some(variant)), Ok(()));
            let problem = check_variant(Path::new(name), Some("other")).unwrap_err();
            assert!(problem.contains("expected variant \"other\""), "{problem}");
        }
        let problem = check_variant(Path::new("x/model.safetensors"), Some("fp16")).unwrap_err();
        assert!(problem.contains("no variant") && problem.contains("leave the variant out"), "{problem}");
    }
}
