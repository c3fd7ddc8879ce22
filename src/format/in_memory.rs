//! Files whose bytes are in memory already.

use std::collections::BTreeMap;

use super::foreign::START_BYTES;
use super::header::{self, Entry, PREFIX_LEN};
use super::problem::Problem;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A safetensors file in memory: its header, checked like that of a file on a disk, and views of its tensors' bytes.
///
/// [`Saver::serialize`](crate::save::Saver::serialize) makes such files.
///
/// ```
/// use tensorhold::Deserialized;
///
/// let header = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
/// let file = [&(header.len() as u64).to_le_bytes()[..], header, &[7, 8]].concat();
/// let file = Deserialized::new(&file)?;
/// let tensor = file.tensors().next().unwrap();
/// assert_eq!((tensor.name, tensor.shape, tensor.bytes), ("a", &[2][..], &[7, 8][..]));
/// # Ok::<(), tensorhold::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Deserialized<'a> {
    bytes: &'a [u8],
    /// Within `bytes`, one after the other.
    entries: Vec<Entry>,
    metadata: Option<BTreeMap<String, String>>,
}

/// A tensor of a file in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorBytes<'a> {
    /// The name.
    pub name: &'a str,
    /// The type of the elements.
    pub dtype: DType,
    /// The dimensions, outermost first; none for a scalar.
    pub shape: &'a [usize],
    /// The elements, row by row and little endian.
    pub bytes: &'a [u8],
}

impl<'a> Deserialized<'a> {
    /// Reads the header of a file that consists of these bytes.
    ///
    /// # Errors
    /// [`Error::Bytes`] when the header is damaged or does not fit the number of bytes, or two tensors have the same name.
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        let error = |problem: Problem| {
            let start = bytes.get(..START_BYTES).unwrap_or(bytes);
            Error::Bytes { problem: problem.of_start(start, bytes.len() as u64).to_string() }
        };
        let prefix = bytes.get(..PREFIX_LEN as usize).unwrap_or(bytes);
        let header_len = header::header_len(prefix, bytes.len() as u64).map_err(error)?;
        let text = bytes.get(prefix.len()..prefix.len() + header_len).unwrap_or_default();
        let (entries, strings) = header::parse(text, bytes.len() as u64).map_err(error)?;
        match header::twice(&entries) {
            Some(twice) => Err(error(twice)),
            None => Ok(Self { bytes, entries, metadata: strings.map(|strings| strings.into_map()) }),
        }
    }

    /// The tensors, in the order of their bytes.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorBytes<'_>> {
        self.entries.iter().map(|Entry { name, dtype, shape, start, nbytes }| {
            // The header was checked to end these within the bytes.
            let bytes = self.bytes.get(*start as usize..(start + nbytes) as usize).unwrap_or_default();
            TensorBytes { name, dtype: *dtype, shape, bytes }
        })
    }

    /// The strings in the header, under `__metadata__`; `None` of a header without that key.
    pub fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        self.metadata.as_ref()
    }
}
