//! What a checkpoint's headers say.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::asked::Asked;
use super::headers::Opened;
use super::rule::Rule;
use crate::error::Result;
use crate::format::{LeftOut, Place, as_text};
use crate::tensor::TensorInfo;
use crate::weights::Metadata;

/// What a checkpoint holds, by its headers. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The selected tensors as they would be loaded, file by file in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// The files, in the order in which they were given.
    pub files: Vec<FileInfo>,
    /// Safetensors files of the checkpoint's folder that a load leaves out, and files of which it leaves out some tensors.
    pub left_out: Vec<LeftOut>,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FileInfo {
    /// The path that it was opened under. Serialized, bytes that are not UTF-8 are replaced by U+FFFD.
    #[serde(serialize_with = "as_text")]
    pub path: Arc<Path>,
    /// Its length.
    pub file_bytes: u64,
    /// How many tensors it holds, selected or not, without copies that its index has [left out](Inspection::left_out).
    pub tensors: usize,
    /// The bytes of those tensors.
    pub bytes: u64,
    /// The free-form strings in its header, under `__metadata__`; `None` of a header without that key.
    pub metadata: Option<Metadata>,
}

impl Inspection {
    /// Of files, each with its strings, and all their tensors; those that are wanted.
    pub(super) fn new<'a>(
        opened: Vec<Opened>,
        metadata: Vec<Option<Arc<Metadata>>>,
        tensors: impl Iterator<Item = &'a TensorInfo> + Clone,
        wanted: Option<&Rule<bool>>,
        asked: &Asked,
    ) -> Result<Self> {
        let file = |(Opened { source, places, .. }, metadata): (Opened, Option<Arc<Metadata>>)| FileInfo {
            path: Arc::clone(source.path()),
            file_bytes: source.len(),
            tensors: places.len(),
            bytes: places.iter().map(|place| place.bytes).fold(0, u64::saturating_add),
            metadata: metadata.map(Arc::unwrap_or_clone),
        };
        asked.check_names(tensors.clone())?;
        let mut found = Vec::new();
        for info in tensors {
            if wanted.map_or(Ok(true), |wanted| wanted.of(info))? {
                // Where it lies in the file does not matter here.
                let changed = asked.of(info, Place { start: 0, bytes: info.nbytes })?;
                found.push(changed.map_or_else(|| info.clone(), |changed| changed.info));
            }
        }
        let files = opened.into_iter().zip(metadata).map(file).collect();
        Ok(Self { tensors: found, files, left_out: Vec::new() })
    }
}
