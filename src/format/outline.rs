//! Where a header's tensors lie, and nothing else: all that has to be known before their bytes can be read.
//!
//! Names, types and shapes take several times as long to read, and memory for each. Where tensors are many, that is done
//! beside the reading of their bytes, by [`parse`](super::parse), which finds out what else is wrong.

use std::fmt;
use std::str;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::diagnose::METADATA;
use super::header::{LIKELY_BYTES, PREFIX_LEN};
use super::json::Text;

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
    let mut offsets = json.deserialize_map(Tensors { likely: text.len() / LIKELY_BYTES }).ok()?;
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
struct Tensors {
    likely: usize,
}

#[derive(Deserialize)]
struct Tensor {
    data_offsets: (u64, u64),
}

impl<'de> Visitor<'de> for Tensors {
    type Value = Vec<(u64, u64)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut offsets = Vec::with_capacity(self.likely);
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            if key == METADATA {
                map.next_value::<IgnoredAny>()?;
            } else {
                offsets.push(map.next_value::<Tensor>()?.data_offsets);
            }
        }
        Ok(offsets)
    }
}
