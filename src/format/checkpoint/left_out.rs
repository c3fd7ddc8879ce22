//! Files that are not loaded.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// A file of a checkpoint's folder that is not loaded, or not wholly: `docs/checkpoints.md` has the rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// The file. Serialized, bytes that are not UTF-8 are replaced by U+FFFD.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// Why, for people to read.
    pub why: String,
}

impl LeftOut {
    /// A file that is left out for that reason.
    pub fn new(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self { path: path.into(), why: why.into() }
    }
}

/// Serializes a path, which need not be UTF-8.
pub(crate) fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}
