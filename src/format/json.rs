//! JSON objects read key by key: parsers into maps do not notice keys that are there twice.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// Hands on each key of an object of strings, and its value. The object is the value of `field` in the object that the text
/// is. Says whether there is that field.
pub(super) fn for_each_pair_of<'a>(
    text: &'a str,
    field: &'static str,
    each: impl FnMut(Cow<'a, str>, Cow<'a, str>),
) -> Result<bool, serde_json::Error> {
    struct Outer<F>(&'static str, F);
    struct Inner<F>(F);

    impl<'de, F: FnMut(Cow<'de, str>, Cow<'de, str>)> Visitor<'de> for Outer<F> {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let Self(field, each) = self;
            let mut each = Some(each);
            while let Some(Text(key)) = map.next_key()? {
                if key == field {
                    let each = each.take().ok_or_else(|| A::Error::duplicate_field(field))?;
                    map.next_value_seed(Inner(each))?;
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(each.is_none())
        }
    }

    impl<'de, F: FnMut(Cow<'de, str>, Cow<'de, str>)> DeserializeSeed<'de> for Inner<F> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            for_each_pair(deserializer, self.0)
        }
    }

    let mut json = serde_json::Deserializer::from_str(text);
    let has_field = json.deserialize_map(Outer(field, each))?;
    json.end().map(|()| has_field)
}

/// Hands on each key of an object of strings, and its value.
fn for_each_pair<'de, D: Deserializer<'de>>(
    deserializer: D,
    each: impl FnMut(Cow<'de, str>, Cow<'de, str>),
) -> Result<(), D::Error> {
    struct Pairs<F>(F);

    impl<'de, F: FnMut(Cow<'de, str>, Cow<'de, str>)> Visitor<'de> for Pairs<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((Text(key), Text(value))) = map.next_entry()? {
                self.0(key, value);
            }
            Ok(())
        }
    }

    deserializer.deserialize_map(Pairs(each))
}

/// A string of a JSON text, borrowed from there where it has no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);
