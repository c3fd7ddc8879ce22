//! A second, independent way to read a safetensors file: the header by the `safetensors` crate, bytes by the standard
//! library's positioned reads. Nothing of tensorhold's is used, so that the two can be compared.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use safetensors::tensor::{Metadata, TensorInfo};

use crate::output::system;

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A safetensors file whose header has been read. It is opened for each read: a checkpoint may have more files than a process may open.
#[derive(Debug)]
pub(crate) struct Reference {
    path: PathBuf,
    header: Metadata,
    /// Where the tensors' bytes begin.
    data_start: u64,
}

impl Reference {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut length = [0; 8];
        read_exact_at(path, &mut length, 0)?;
        let length = u64::from_le_bytes(length);
        ensure!(
            length <= MAX_HEADER_BYTES,
            "read {path:?}: a header of {length} bytes, limit {MAX_HEADER_BYTES}"
        );
        let mut header = vec![0; length as usize];
        read_exact_at(path, &mut header, 8)?;
        let header =
            serde_json::from_slice(&header).with_context(|| format!("parse the header of {path:?}"))?;
        Ok(Self { path: path.to_owned(), header, data_start: 8 + length })
    }

    /// What the header says of a tensor.
    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    /// The tensors' names, by the order of their bytes.
    pub(crate) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Reads bytes at an offset as the header counts them: from the first byte of the first tensor.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> anyhow::Result<()> {
        let offset = offset.checked_add(self.data_start).context("add offsets: they overflow")?;
        read_exact_at(&self.path, buffer, offset)
    }
}

fn read_exact_at(path: &Path, buffer: &mut [u8], offset: u64) -> anyhow::Result<()> {
    let bytes = buffer.len();
    let file = File::open(path).map_err(system("open", path))?;
    file.read_exact_at(buffer, offset)
        .with_context(|| format!("read {bytes} bytes of {path:?} at offset {offset}"))
}
