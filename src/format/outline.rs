//! Where a header's tensors lie, and nothing else: all that has to be known before their bytes can be read.
//!
//! Names, types and shapes take several times as long to read, and memory for each. Where tensors are many, that is done
//! beside the reading of their bytes, by [`parse`](super::parse), which finds out what else is wrong.

use std::fmt;
use std::str;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::METADATA;
use super::header::{LIKELY_BYTES, PREFIX_LEN};
use super::json::Text;
use super::values::{Offsets, Reader, Skipped, refuses, seed};

/// Where a tensor's bytes are in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

/// The places of a header's tensors in the order of their bytes, which follow each other from the end of the header to that
/// of the file. `None` when it is not so, or the header is no header: [`parse`](super::parse) says what is wrong.
pub(crate) fn outline(header: &[u8], file_len: u64) -> Option<Vec<Place>> {
    let text = str::from_utf8(header).ok()?;
    let mut json = serde_json::Deserializer::from_str(text);
    let (reader, likely) = (&mut Reader::default(), text.len() / LIKELY_BYTES);
    let mut offsets = Tensors { reader, likely }.deserialize(&mut json).ok()?;
    json.end().ok()?;
    offsets.sort_unstable();
    let mut end = 0;
    let data_start = PREFIX_LEN.checked_add(header.len() as u64)?;
    let mut places = Vec::with_capacity(offsets.len());
    for (start, next) in offsets {
        let bytes = next.checked_sub(start).filter(|_| start == end)?;
        places.push(Place { start: data_start.checked_add(start)?, bytes });
        end = next;
    }
    (data_start.checked_add(end)? == file_len).then_some(places)
}

/// Reads the offsets of a header that has about so many tensors.
struct Tensors<'r> {
    reader: &'r mut Reader,
    likely: usize,
}

/// Reads those of a tensor.
struct Tensor<'r>(&'r mut Reader);

seed!(Tensors gives Vec<(u64, u64)>);
seed!(Tensor gives (u64, u64));

impl<'de> Visitor<'de> for Tensors<'_> {
    type Value = Vec<(u64, u64)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut offsets = Vec::with_capacity(self.likely);
        while let Some(Text(key)) = map.next_key()? {
            if key == METADATA {
                map.next_value_seed(Skipped { reader: self.reader, keys: false })?;
            } else {
                offsets.push(map.next_value_seed(Tensor(self.reader))?);
            }
        }
        Ok(offsets)
    }

    refuses! { scalars null text list }
}

impl<'de> Visitor<'de> for Tensor<'_> {
    type Value = (u64, u64);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut offsets = None;
        while let Some(Text(key)) = map.next_key()? {
            match &*key {
                "data_offsets" => {
                    if offsets.replace(map.next_value_seed(Offsets(self.0))?).is_some() {
                        return Err(A::Error::duplicate_field("data_offsets"));
                    }
                }
                // Each tensor has them, and they are skipped the quickest way.
                "dtype" | "shape" => {
                    map.next_value::<IgnoredAny>()?;
                }
                _ => map.next_value_seed(Skipped { reader: self.0, keys: false })?,
            }
        }
        offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))
    }

    refuses! { scalars null text list }
}

impl Tensors<'_> {
    fn refuse<E: Error>(self, _: impl fmt::Display) -> E {
        E::custom("no header")
    }
}

impl Tensor<'_> {
    fn refuse<E: Error>(self, _: impl fmt::Display) -> E {
        E::custom("no tensor")
    }
}
