//! One file's header, and whether it fits the file.

use std::collections::HashSet;
use std::str;
use std::sync::Arc;

use foldhash::fast::RandomState;
use tensorhold_allocator::Brief;

use super::problem::Problem;
use super::read::Parsed;
use super::strings::Sorted;
use crate::dtype::DType;
use crate::shape::{self, Shape};

/// The format's limit on a header's length in bytes, as the `safetensors` crate has it.
pub(crate) const MAX_HEADER_LEN: u64 = 100_000_000;

/// The bytes before the header, which hold its length.
pub(super) const PREFIX_LEN: u64 = 8;

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

impl Entry {
    /// Checks offsets, type and shape against each other, given where the tensor before it ends. As the `safetensors` crate does.
    fn check(&self, previous_end: u64) -> Result<(), String> {
        let Self { dtype, shape, start, nbytes, .. } = self;
        if start != &previous_end {
            let how = if *start < previous_end { "overlaps the tensor before it" } else { "leaves a hole" };
            return Err(format!("its offset {start} {how}, expected {previous_end}"));
        }
        let Some(bits) = shape::bits(*dtype, shape) else {
            return Err(format!(
                "the size of shape {} of {dtype} overflows 64 bits",
                Brief(format_args!("{shape:?}"))
            ));
        };
        if !bits.is_multiple_of(8) {
            return Err(format!(
                "shape {} of {dtype} is {bits} bits, expected whole bytes",
                Brief(format_args!("{shape:?}"))
            ));
        }
        if *nbytes != bits / 8 {
            let expected =
                format!("expected {} by shape {} of {dtype}", bits / 8, Brief(format_args!("{shape:?}")));
            return Err(format!("its offsets span {nbytes} bytes, {expected}"));
        }
        Ok(())
    }
}

/// The problem that two tensors have one name, if they do. In a wrong header it is what is wrong.
pub(super) fn twice(tensors: &[Entry]) -> Option<Problem> {
    let mut names: HashSet<&str, RandomState> =
        HashSet::with_capacity_and_hasher(tensors.len(), RandomState::default());
    let twice = tensors.iter().find(|tensor| !names.insert(&tensor.name))?;
    Some(Problem::duplicate(&twice.name))
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
        return Err(match file_len {
            0..10 => Problem::TooSmall { file_len },
            _ => Problem::TooShort { header_len },
        });
    }
    Ok(header_len as usize)
}

/// What a header says: its tensors in the order of their bytes, and the free-form strings, if it has a place for them.
pub(crate) type Header = (Vec<Entry>, Option<Sorted>);

/// Parses a header and checks it against the length of its file.
///
/// That no two tensors have one name is for the [`Catalog`](super::Catalog) to say, which knows those of all files.
pub(crate) fn parse(header: &[u8], file_len: u64) -> Result<Header, Problem> {
    let text = str::from_utf8(header).map_err(|error| Problem::Utf8 { valid: error.valid_up_to() })?;
    let Parsed { metadata, mut tensors } = Parsed::read(text)?;
    // By their bytes; empty ones, which may share a place, by their names.
    tensors.sort_unstable_by(|a, b| (a.start, a.nbytes, &a.name).cmp(&(b.start, b.nbytes, &b.name)));
    let data_start = PREFIX_LEN + header.len() as u64;
    let mut end = 0;
    for tensor in &tensors {
        if let Err(problem) = tensor.check(end) {
            return Err(twice(&tensors).unwrap_or_else(|| Problem::tensor(&tensor.name, problem)));
        }
        // What is read of a tensor ends where 64 bits can say.
        end = tensor.start.saturating_add(tensor.nbytes);
    }
    let expected = data_start.saturating_add(end);
    if file_len < expected {
        return Err(Problem::CutShort { file_len, expected });
    }
    if file_len > expected {
        return Err(Problem::Trailing { file_len, expected });
    }
    // They end where the file does.
    tensors.iter_mut().for_each(|tensor| tensor.start += data_start);
    Ok((tensors, metadata))
}

/// So long is what a header says of one tensor, or longer; a guess, to have room for many.
pub(super) const LIKELY_BYTES: usize = 96;
