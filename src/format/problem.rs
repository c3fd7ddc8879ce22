//! What can be wrong with a header, told for one file.

use std::path::Path;

use tensorhold_allocator::{Brief, Quoted};

use crate::error::Error;

/// What is wrong with a header. What is in it of the header's own texts is quoted, and bounded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error(
        "the file is {file_len} bytes, too few for a header (HeaderTooSmall), expected at least 10; \
         it is empty, cut short or not a safetensors file"
    )]
    TooSmall { file_len: u64 },
    #[error(
        "it says that it is {header_len} bytes long, more than the format's limit of {limit}; \
         this is not a safetensors file, or a damaged one"
    )]
    TooLarge { header_len: u64, limit: u64 },
    #[error(
        "it says that it is {header_len} bytes long, but the file ends after {file_len}; \
         the file is cut short or not a safetensors file: download or write it again"
    )]
    PastEnd { header_len: u64, file_len: u64 },
    #[error("it is not UTF-8 from byte {valid} on; this is not a safetensors file, or a damaged one")]
    Utf8 { valid: usize },
    #[error(
        "it is not the JSON object that it should be: {}; this is not a safetensors file, or a damaged one",
        Brief(_0)
    )]
    Json(serde_json::Error),
    #[error(
        "it is not the JSON object that it should be, but {got}; this is not a safetensors file, or a damaged one"
    )]
    NoObject { got: String },
    #[error("the key {key} is there twice, expected once; write the file again with distinct names")]
    Duplicate { key: String },
    #[error("its __metadata__ is {got}, expected an object of strings; write the file again")]
    Metadata { got: String },
    #[error("tensor {tensor}: {problem}; write the file again")]
    Tensor { tensor: String, problem: String },
    #[error(
        "the file is {file_len} bytes, expected {expected} by its header: it is cut short; download or write it again"
    )]
    CutShort { file_len: u64, expected: u64 },
    #[error(
        "the file is {file_len} bytes, expected {expected} by its header: {} more than belong to it; \
         write it again, or cut off what was appended",
        file_len - expected
    )]
    Trailing { file_len: u64, expected: u64 },
}

impl Problem {
    /// A key is there twice.
    pub(super) fn duplicate(key: &str) -> Self {
        Self::Duplicate { key: Quoted(key).to_string() }
    }

    /// Something is wrong with the tensor of that name.
    pub(super) fn tensor(name: &str, problem: String) -> Self {
        Self::Tensor { tensor: Quoted(name).to_string(), problem }
    }

    /// The error for this problem of a file.
    pub(crate) fn of(self, path: &Path) -> Error {
        Error::Header { path: path.into(), problem: self.to_string() }
    }
}
