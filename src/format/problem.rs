//! What can be wrong with a header, told for one file.

use std::path::Path;

use tensorhold_allocator::{Brief, Quoted};

use super::foreign;
use crate::dtype::DType;
use crate::error::Error;

/// What is wrong with a header. What is in it of the header's own texts is quoted, and bounded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error(
        "the file is {file_len} bytes, too few for a header (HeaderTooSmall), expected at least 10; {}",
        if *file_len == 0 {
            "a download or a copy wrote nothing: fetch or write it again"
        } else {
            "it is cut short or not a safetensors file: fetch or write it again"
        }
    )]
    TooSmall { file_len: u64 },
    #[error(
        "it says that it is {header_len} bytes long, expected at least 2; this is not a safetensors file, or a damaged one: \
         fetch or write it again"
    )]
    TooShort { header_len: u64 },
    #[error(
        "it says that it is {header_len} bytes long, more than the format's limit of {limit}; \
         this is not a safetensors file, or a damaged one: fetch or write it again"
    )]
    TooLarge { header_len: u64, limit: u64 },
    #[error(
        "it says that it is {header_len} bytes long, but the file ends after {file_len}; \
         the file is cut short or not a safetensors file: fetch or write it again"
    )]
    PastEnd { header_len: u64, file_len: u64 },
    /// What the file is instead.
    #[error("{0}")]
    Foreign(String),
    #[error(
        "it is not UTF-8 from byte {valid} on; this is not a safetensors file, or a damaged one: fetch or write it again"
    )]
    Utf8 { valid: usize },
    #[error(
        "it is not the JSON object that it should be: {}; this is not a safetensors file, or a damaged one: fetch or write it again",
        Brief(_0)
    )]
    Json(serde_json::Error),
    #[error(
        "it is not the JSON object that it should be, but {got}; this is not a safetensors file, or a damaged one: fetch or write it again"
    )]
    NoObject { got: String },
    #[error("the key {key} is there twice, expected once; write the file again with distinct names")]
    Duplicate { key: String },
    #[error("its __metadata__ is {got}, expected an object of strings; write the file again with strings")]
    Metadata { got: String },
    #[error("tensor {tensor}: {problem}; fetch or write the file again")]
    Tensor { tensor: String, problem: String },
    #[error(
        "tensor {tensor}: unknown dtype {dtype}, expected one of {}; the file may be newer than this library (tensorhold {}): use a newer \
         version, or a file whose tensors have one of these dtypes",
        known_dtypes(), env!("CARGO_PKG_VERSION")
    )]
    Dtype { tensor: String, dtype: String },
    #[error(
        "the file is {file_len} bytes, expected {expected} by its header: it is cut short; fetch or write it again"
    )]
    CutShort { file_len: u64, expected: u64 },
    #[error(
        "the file is {file_len} bytes, expected {expected} by its header: {} more than belong to it; \
         fetch or write it again, or cut off what was appended",
        file_len - expected
    )]
    Trailing { file_len: u64, expected: u64 },
}

/// What is wrong with a tensor.
pub(super) enum Wrong {
    /// Its dtype, as quoted, is none that is known.
    Dtype(String),
    Other(String),
}

impl From<String> for Wrong {
    fn from(problem: String) -> Self {
        Self::Other(problem)
    }
}

fn known_dtypes() -> String {
    DType::ALL.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ")
}

impl Problem {
    /// A key is there twice.
    pub(super) fn duplicate(key: &str) -> Self {
        Self::Duplicate { key: Quoted(key).to_string() }
    }

    /// Something is wrong with the tensor of that name.
    pub(super) fn tensor(name: &str, wrong: impl Into<Wrong>) -> Self {
        let tensor = Quoted(name).to_string();
        match wrong.into() {
            Wrong::Dtype(dtype) => Self::Dtype { tensor, dtype },
            Wrong::Other(problem) => Self::Tensor { tensor, problem },
        }
    }

    /// The same of a file that begins with these bytes: what is no safetensors file at all is named for what it is.
    pub(crate) fn of_start(self, start: &[u8], file_len: u64) -> Self {
        let found = if self.doubts_format() { foreign::identify(start, file_len) } else { None };
        let Some(found) = found else { return self };
        let problem = found.instead_of("a safetensors file");
        match self {
            // Callers may know these by their word.
            Self::TooSmall { file_len: 0 } => self,
            Self::TooSmall { .. } => Self::Foreign(format!("HeaderTooSmall, {file_len} bytes: {problem}")),
            _ => Self::Foreign(problem),
        }
    }

    /// Whether the file may be something else than a safetensors file.
    pub(crate) fn doubts_format(&self) -> bool {
        match self {
            Self::TooSmall { .. } | Self::TooShort { .. } | Self::TooLarge { .. } | Self::PastEnd { .. } => {
                true
            }
            Self::Utf8 { .. } | Self::Json(_) | Self::NoObject { .. } => true,
            Self::Foreign(_) | Self::Duplicate { .. } | Self::Metadata { .. } | Self::Tensor { .. } => false,
            Self::Dtype { .. } | Self::CutShort { .. } | Self::Trailing { .. } => false,
        }
    }

    /// The error for this problem of a file.
    pub(crate) fn of(self, path: &Path) -> Error {
        Error::Header { path: path.into(), problem: self.to_string() }
    }
}
