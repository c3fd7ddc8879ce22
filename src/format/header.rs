//! One file's header: parsed and validated by the `safetensors` crate, which looks at the header alone; the rest of
//! what makes a file right is checked here.

use std::collections::BTreeMap;
use std::str;
use std::sync::Arc;

use safetensors::tensor::Metadata;

use super::diagnose::diagnose;
use super::duplicates::find_duplicate;
use super::problem::Problem;
use crate::dtype::DType;
use crate::shape::Shape;

/// The format's limit on a header's length in bytes, as the `safetensors` crate has it.
const MAX_HEADER_LEN: u64 = 100_000_000;

/// The bytes before the header, which hold its length.
const PREFIX_LEN: u64 = 8;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The tensors in the order of their bytes.
    pub(crate) tensors: Vec<Entry>,
    /// The free-form strings.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    /// Where its bytes begin, from the start of the file.
    pub(crate) start: u64,
    pub(crate) nbytes: u64,
}

/// The length of the header, by the file's first bytes (8, or as many as it has) and its length.
pub(crate) fn header_len(prefix: &[u8], file_len: u64) -> Result<usize, Problem> {
    let Ok(prefix) = <[u8; 8]>::try_from(prefix) else { return Err(Problem::TooSmall { file_len }) };
    let header_len = u64::from_le_bytes(prefix);
    if header_len > MAX_HEADER_LEN {
        return Err(Problem::TooLarge { header_len, limit: MAX_HEADER_LEN });
    }
    if header_len > file_len.saturating_sub(PREFIX_LEN) {
        return Err(Problem::PastEnd { header_len, file_len });
    }
    // `{}` is the shortest.
    if header_len < 2 {
        return Err(Problem::TooSmall { file_len });
    }
    Ok(header_len as usize)
}

/// Parses a header and checks it against the length of its file.
pub(crate) fn parse(header: &[u8], file_len: u64) -> Result<Header, Problem> {
    let text = str::from_utf8(header).map_err(|error| Problem::Utf8 { valid: error.valid_up_to() })?;
    // The parser below would keep one of two equal keys.
    if let Some(key) = find_duplicate(text).map_err(Problem::Json)? {
        return Err(Problem::Duplicate { key });
    }
    let parsed: Metadata =
        serde_json::from_str(text).map_err(|error| diagnose(text).unwrap_or(Problem::Json(error)))?;

    let data_start = PREFIX_LEN + header.len() as u64;
    let mut data_len = 0;
    let mut tensors = Vec::new();
    for (name, info) in parsed.tensors() {
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let past_end = || Problem::Tensor { tensor: name.clone(), problem: "its offsets overflow".into() };
        let unknown =
            || Problem::Tensor { tensor: name.clone(), problem: format!("unknown dtype {:?}", info.dtype) };
        data_len = data_len.max(end);
        tensors.push(Entry {
            dtype: DType::from_safetensors(info.dtype).ok_or_else(unknown)?,
            shape: info.shape.as_slice().into(),
            start: data_start.checked_add(start).ok_or_else(past_end)?,
            nbytes: end.checked_sub(start).ok_or_else(past_end)?,
            name: name.into(),
        });
    }
    // By their bytes; empty ones, which may share a place, by their names.
    tensors.sort_unstable_by(|a, b| (a.start, a.nbytes, &a.name).cmp(&(b.start, b.nbytes, &b.name)));
    let expected = data_start.saturating_add(data_len);
    if file_len < expected {
        return Err(Problem::CutShort { file_len, expected });
    }
    if file_len > expected {
        return Err(Problem::Trailing { file_len, expected });
    }
    let metadata =
        parsed.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Header { tensors, metadata })
}
