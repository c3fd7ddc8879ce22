//! A header's text, read in one pass that keeps only what is needed of it, and that says what is wrong as it finds it.
//!
//! All of it is looked at, so that no header is accepted that the `safetensors` crate refuses: fields that the format does not have are skipped value by value,
//! with the limits that JSON's other values have, and no object may have a key twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use tensorhold_allocator::Quoted;

use super::METADATA;
use super::header::{Entry, LIKELY_BYTES};
use super::json::Text;
use super::problem::Problem;
use super::strings::{Sorted, Strings};
use super::values::{Dimensions, Offsets, Reader, Skipped, TypeName, refuses, seed};
use crate::dtype::DType;
use crate::shape::Shape;

/// What a header says. Offsets are from its end. Whether they fit together, and names differ, is not known yet.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// `None` of a header without them, which is not the same as a header with none of them.
    pub(super) metadata: Option<Sorted>,
    pub(super) tensors: Vec<Entry>,
}

impl Parsed {
    pub(super) fn read(text: &str) -> Result<Self, Problem> {
        Self::read_by(text, Reader::default())
    }

    fn read_by(text: &str, mut reader: Reader) -> Result<Self, Problem> {
        let mut json = serde_json::Deserializer::from_str(text);
        let header = Header { reader: &mut reader, likely: text.len() / LIKELY_BYTES };
        let parsed = header.deserialize(&mut json).and_then(|parsed| json.end().map(|()| parsed));
        let Err(error) = parsed else { return parsed.map_err(Problem::Json) };
        let Reader { problem, seen, .. } = reader;
        match (problem, seen.again()) {
            (Some(problem), _) => Err(problem),
            // Which key it is, of which only the hash is known.
            (None, Some(seen)) => Self::read_by(text, Reader { seen, ..Reader::default() }),
            (None, None) => Err(Problem::Json(error)),
        }
    }
}

/// All of a header, which has about so many tensors.
struct Header<'r> {
    reader: &'r mut Reader,
    likely: usize,
}

seed!(Header gives Parsed);

impl Header<'_> {
    fn refuse<E: Error>(self, got: impl fmt::Display) -> E {
        self.reader.fail(Problem::NoObject { got: got.to_string() })
    }
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let Self { reader, likely } = self;
        let (mut metadata, mut tensors) = (None, Vec::with_capacity(likely));
        while let Some(Text(key)) = map.next_key()? {
            if key == METADATA {
                let strings = map.next_value_seed(FreeForm(reader))?;
                if metadata.replace(strings).is_some() {
                    return Err(reader.fail(Problem::duplicate(&key)));
                }
                continue;
            }
            match map.next_value_seed(Tensor { reader, name: &key }) {
                Ok(tensor) => tensors.push(tensor),
                Err(error) => {
                    if let Some(wrong) = reader.wrong.take() {
                        return Err(reader.fail(Problem::tensor(&key, wrong)));
                    }
                    return Err(error);
                }
            }
        }
        Ok(Parsed { metadata: metadata.flatten(), tensors })
    }

    refuses! { scalars null text list }
}

/// The free-form strings, or null.
struct FreeForm<'r>(&'r mut Reader);

seed!(FreeForm gives Option<Sorted>);

impl FreeForm<'_> {
    fn refuse<E: Error>(self, got: impl fmt::Display) -> E {
        self.0.fail(Problem::Metadata { got: got.to_string() })
    }
}

impl<'de> Visitor<'de> for FreeForm<'_> {
    type Value = Option<Sorted>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut strings = Strings::default();
        while let Some(Text(key)) = map.next_key()? {
            let (reader, strings) = (&mut *self.0, &mut strings);
            map.next_value_seed(FreeString { reader, strings, key: &key })?;
        }
        strings.sort().map(Some).map_err(|problem| self.0.fail(problem))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    refuses! { scalars text list }
}

/// One of them.
struct FreeString<'r> {
    reader: &'r mut Reader,
    strings: &'r mut Strings,
    key: &'r str,
}

seed!(FreeString gives ());

impl FreeString<'_> {
    fn refuse<E: Error>(self, got: impl fmt::Display) -> E {
        let got = format!("{got} under {}", Quoted(self.key));
        self.reader.fail(Problem::Metadata { got })
    }
}

impl<'de> Visitor<'de> for FreeString<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.strings.push(self.key, value);
        Ok(())
    }

    refuses! { scalars null list object }
}

/// What a header says of the tensor of that name.
struct Tensor<'r> {
    reader: &'r mut Reader,
    name: &'r str,
}

seed!(Tensor gives Entry);

impl Tensor<'_> {
    fn refuse<E: Error>(self, got: impl fmt::Display) -> E {
        self.reader.fail_tensor(format!("it is {got}, expected an object"))
    }
}

impl<'de> Visitor<'de> for Tensor<'_> {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let Self { reader, name } = self;
        let (mut dtype, mut shape, mut offsets, mut others) = (None, None, None, None);
        while let Some(Text(key)) = map.next_key()? {
            let is_twice = match &*key {
                "dtype" => dtype.replace(map.next_value_seed(TypeName(reader))?).is_some(),
                "shape" => shape.replace(map.next_value_seed(Dimensions(reader))?).is_some(),
                "data_offsets" => offsets.replace(map.next_value_seed(Offsets(reader))?).is_some(),
                _ => {
                    let others = *others.get_or_insert_with(|| reader.seen.object());
                    map.next_value_seed(Skipped { reader, keys: true })?;
                    reader.seen.note(others, &key)
                }
            };
            if is_twice {
                return Err(reader.fail(Problem::duplicate(&key)));
            }
        }
        if others.is_some_and(|others| reader.seen.has_twice(others)) {
            return Err(A::Error::custom("a key is there twice"));
        }
        let mut missing = |field: &str| reader.fail_tensor(format!("it has no {field:?}"));
        let dtype: DType = dtype.ok_or_else(|| missing("dtype"))?;
        let shape: Shape = shape.ok_or_else(|| missing("shape"))?;
        let (start, end) = offsets.ok_or_else(|| missing("data_offsets"))?;
        let nbytes = end.checked_sub(start);
        let nbytes =
            nbytes.ok_or_else(|| reader.fail_tensor(format!("its offsets {start}..{end} run backwards")))?;
        Ok(Entry { name: name.into(), dtype, shape, start, nbytes })
    }

    refuses! { scalars null text list }
}
