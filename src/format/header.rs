//! One file's header: parsed and validated by the `safetensors` crate, which looks at the header alone; the rest of
//! what makes a file right is checked here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::{fmt, str};

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::diagnose::{METADATA, diagnose};
use super::json::{Text, find_duplicate, for_each_pair};
use super::problem::Problem;
use crate::dtype::DType;
use crate::shape::Shape;

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

/// Parses a header and checks it against the length of its file. Hands on the tensors in the order of their bytes (some, if
/// there is a problem) and returns the free-form strings.
///
/// That no two tensors have one name is for the [`Catalog`](super::Catalog) to say, which knows those of all files.
pub(crate) fn parse(
    header: &[u8],
    file_len: u64,
    mut each: impl FnMut(Entry),
) -> Result<BTreeMap<String, String>, Problem> {
    let text = str::from_utf8(header).map_err(|error| Problem::Utf8 { valid: error.valid_up_to() })?;
    let Parsed { metadata, tensors: mut infos, duplicate } =
        Parsed::read(text).map_err(|error| problem(text, error))?;
    if let Some(key) = duplicate {
        return Err(Problem::Duplicate { key });
    }
    // By their bytes; empty ones, which may share a place, by their names.
    infos.sort_unstable_by(|(a, left), (b, right)| (left.data_offsets, a).cmp(&(right.data_offsets, b)));

    let data_start = PREFIX_LEN + header.len() as u64;
    let mut infos = infos.into_iter();
    let mut checked = 0;
    while infos.len() > 0 {
        let mut run = Vec::with_capacity(infos.len().min(RUN));
        for (name, info) in infos.by_ref().take(RUN) {
            let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            let wrong = |problem| Problem::Tensor { tensor: name.as_ref().into(), problem };
            let past_end = || diagnose(text).unwrap_or_else(|| wrong("its offsets overflow".into()));
            each(Entry {
                dtype: DType::from_safetensors(info.dtype)
                    .ok_or_else(|| wrong(format!("unknown dtype {:?}", info.dtype)))?,
                shape: info.shape.as_slice().into(),
                start: data_start.checked_add(start).ok_or_else(past_end)?,
                nbytes: end.checked_sub(start).ok_or_else(past_end)?,
                name: name.as_ref().into(),
            });
            run.push(info);
        }
        checked = check(run, checked).map_err(|error| problem(text, error))?;
    }
    let expected = data_start.saturating_add(checked as u64);
    if file_len < expected {
        return Err(Problem::CutShort { file_len, expected });
    }
    if file_len > expected {
        return Err(Problem::Trailing { file_len, expected });
    }
    Ok(metadata)
}

/// So many tensors are checked at a time: the crate has memory of its own for each.
const RUN: usize = 256;

/// Checks consecutive tensors by the crate's rules for offsets, shapes and sizes, given where those before them end. Returns
/// where these end.
fn check(mut run: Vec<TensorInfo>, previous_end: usize) -> Result<usize, serde_json::Error> {
    // The rules are for tensors that begin at 0. A place before that is none at all.
    let from_there = |place: usize| place.checked_sub(previous_end);
    for info in &mut run {
        let (start, end) = info.data_offsets;
        let offsets = from_there(start).zip(from_there(end));
        info.data_offsets = offsets.ok_or_else(|| serde_json::Error::custom("offsets overlap"))?;
    }
    let end = run.last().map_or(0, |last| last.data_offsets.1);
    // The crate needs names for its messages alone, and ours say more.
    let nameless = run.into_iter().map(|info| (String::new(), info)).collect();
    Metadata::new(None, nameless).map_err(serde_json::Error::custom)?;
    Ok(previous_end + end)
}

/// What is wrong with a header that does not parse.
fn problem(text: &str, error: serde_json::Error) -> Problem {
    match find_duplicate(text) {
        Ok(Some(key)) => Problem::Duplicate { key },
        Ok(None) => diagnose(text).unwrap_or(Problem::Json(error)),
        Err(error) => Problem::Json(error),
    }
}

/// A header as it is written, in one pass: the crate's own parser buffers each tensor, and keeps one of two equal keys.
struct Parsed<'a> {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(Cow<'a, str>, TensorInfo)>,
    /// A key of the metadata that is there twice. In a tensor's description it is an error.
    duplicate: Option<String>,
}

impl<'a> Parsed<'a> {
    fn read(text: &'a str) -> Result<Self, serde_json::Error> {
        let mut json = serde_json::Deserializer::from_str(text);
        let parsed = json.deserialize_map(Keys { likely: text.len() / LIKELY_BYTES })?;
        json.end()?;
        Ok(parsed)
    }
}

/// So long is what a header says of one tensor, or longer; a guess, to have room for many.
pub(super) const LIKELY_BYTES: usize = 96;

/// Reads the keys of a header that has about so many.
struct Keys {
    likely: usize,
}

impl<'de> Visitor<'de> for Keys {
    type Value = Parsed<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed<'de>, A::Error> {
        let (mut metadata, mut duplicate) = (None, None);
        let mut tensors = Vec::with_capacity(self.likely);
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            if key == METADATA {
                let Strings(strings, twice) = map.next_value::<Option<Strings>>()?.unwrap_or_default();
                let twice = twice.or_else(|| metadata.replace(strings).map(|_| key.into_owned()));
                duplicate = duplicate.or(twice);
            } else {
                tensors.push((key, map.next_value()?));
            }
        }
        Ok(Parsed { metadata: metadata.unwrap_or_default(), tensors, duplicate })
    }
}

/// The metadata's strings, and a key that is there twice.
#[derive(Default)]
struct Strings(BTreeMap<String, String>, Option<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Self(mut strings, mut twice) = Self::default();
        for_each_pair(deserializer, |key, value| {
            if strings.insert(key.clone().into_owned(), value.into_owned()).is_some() {
                twice = Some(key.into_owned());
            }
        })?;
        Ok(Self(strings, twice))
    }
}
