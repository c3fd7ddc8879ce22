//! [`Inspection`]: the content of a checkpoint, from its headers alone.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::header::OpenedFile;
use crate::error::Result;
use crate::format::{LeftOut, Place, as_text};
use crate::loader::transform::{Rule, TransformSpec};
use crate::tensor::TensorInfo;
use crate::weights::Metadata;

/// The content of a checkpoint, from its headers. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The selected tensors as a load would return them, file by file in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// The files, in the order in which they were given.
    pub files: Vec<FileInfo>,
    /// Safetensors files in the checkpoint's folder that a load leaves out, and files of which it leaves out
    /// some tensors.
    pub left_out: Vec<LeftOut>,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FileInfo {
    /// The path that it was opened by. When serialized, bytes that are not UTF-8 become U+FFFD.
    #[serde(serialize_with = "as_text")]
    pub path: Arc<Path>,
    /// Its length.
    pub file_bytes: u64,
    /// How many tensors it holds, selected or not, without copies that its index has [left
    /// out](Inspection::left_out).
    pub tensors: usize,
    /// The bytes of those tensors.
    pub bytes: u64,
    /// The free-form strings in its header, under `__metadata__`. `None` if the header has no such key.
    pub metadata: Option<Metadata>,
}

impl Inspection {
    /// Describes files with their strings, and the tensors that `wanted` accepts.
    ///
    /// # Errors
    /// When a requested conversion or cut is not supported, or a rule calls itself.
    pub(crate) fn new<'a>(
        opened: Vec<OpenedFile>,
        metadata: Vec<Option<Arc<Metadata>>>,
        tensors: impl Iterator<Item = &'a TensorInfo> + Clone,
        wanted: Option<&Rule<bool>>,
        spec: &TransformSpec,
    ) -> Result<Self> {
        let file =
            |(OpenedFile { source, places, .. }, metadata): (OpenedFile, Option<Arc<Metadata>>)| FileInfo {
                path: Arc::clone(source.path()),
                file_bytes: source.len(),
                tensors: places.len(),
                bytes: places.iter().map(|place| place.bytes).fold(0, u64::saturating_add),
                metadata: metadata.map(Arc::unwrap_or_clone),
            };
        spec.check_names(tensors.clone())?;
        let mut found = Vec::new();
        for info in tensors {
            if wanted.map_or(Ok(true), |wanted| wanted.of(info))? {
                // The offset in the file does not matter here.
                let resolved = spec.resolve(info, Place { start: 0, bytes: info.nbytes })?;
                found.push(resolved.map_or_else(|| info.clone(), |resolved| resolved.info));
            }
        }
        let files = opened.into_iter().zip(metadata).map(file).collect();
        Ok(Self { tensors: found, files, left_out: Vec::new() })
    }
}
