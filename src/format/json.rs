//! JSON objects read key by key: parsers into maps do not notice keys that are there twice.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use foldhash::fast::RandomState;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The first key that a JSON object, or an object that is one of its values, has twice.
///
/// `None` also for a text that is no object of objects; whoever parses it for real will say so. An error is one of
/// syntax.
pub(super) fn find_duplicate(text: &str) -> Result<Option<String>, serde_json::Error> {
    let Keys(duplicate) = serde_json::from_str(text)?;
    Ok(duplicate)
}

/// Hands on each key of an object of strings, and its value. The object is the value of `field` in the object that the text
/// is.
pub(super) fn for_each_pair_of<'a>(
    text: &'a str,
    field: &'static str,
    each: impl FnMut(Cow<'a, str>, Cow<'a, str>),
) -> Result<(), serde_json::Error> {
    struct Outer<F>(&'static str, F);
    struct Inner<F>(F);

    impl<'de, F: FnMut(Cow<'de, str>, Cow<'de, str>)> Visitor<'de> for Outer<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
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
            each.map_or(Ok(()), |_| Err(A::Error::missing_field(field)))
        }
    }

    impl<'de, F: FnMut(Cow<'de, str>, Cow<'de, str>)> DeserializeSeed<'de> for Inner<F> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            for_each_pair(deserializer, self.0)
        }
    }

    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Outer(field, each))?;
    json.end()
}

/// Hands on each key of an object of strings, and its value.
pub(super) fn for_each_pair<'de, D: Deserializer<'de>>(
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

/// An object's keys, of which one that is there twice is remembered.
struct Keys(Option<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Outer;

        impl<'de> Visitor<'de> for Outer {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut seen: HashSet<Cow<'de, str>, RandomState> = HashSet::default();
                let mut duplicate = None;
                while let Some(Text(key)) = map.next_key()? {
                    let Inner(inner) = map.next_value()?;
                    duplicate = duplicate.or(inner);
                    if let Some(key) = seen.replace(key) {
                        duplicate = duplicate.or(Some(key.into_owned()));
                    }
                }
                Ok(Keys(duplicate))
            }
        }

        deserializer.deserialize_map(Outer)
    }
}

/// A string of a JSON text, borrowed from there where it has no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// A value: if it is an object, a key that it has twice.
struct Inner(Option<String>);

impl<'de> Deserialize<'de> for Inner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;

        impl<'de> Visitor<'de> for Values {
            type Value = Inner;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Inner, A::Error> {
                let mut keys: Vec<Cow<'de, str>> = Vec::with_capacity(4);
                while let Some(Text(key)) = map.next_key()? {
                    map.next_value::<IgnoredAny>()?;
                    keys.push(key);
                }
                // Sorted, not hashed: a tensor has three keys, and a file may have 100,000 tensors.
                keys.sort_unstable();
                let twice = keys.windows(2).find(|pair| pair[0] == pair[1]);
                Ok(Inner(twice.map(|pair| pair[0].clone().into_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Inner, A::Error> {
                IgnoredAny.visit_seq(seq).map(|_| Inner(None))
            }

            fn visit_unit<E>(self) -> Result<Inner, E> {
                Ok(Inner(None))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Inner, E> {
                Ok(Inner(None))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Inner, E> {
                Ok(Inner(None))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Inner, E> {
                Ok(Inner(None))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Inner, E> {
                Ok(Inner(None))
            }

            fn visit_str<E>(self, _: &str) -> Result<Inner, E> {
                Ok(Inner(None))
            }
        }

        deserializer.deserialize_any(Values)
    }
}

#[cfg(test)]
mod tests {
    use super::find_duplicate;

    #[test]
    fn keys_are_compared_unescaped_at_both_levels() {
        let found = |text| find_duplicate(text).unwrap();
        assert_eq!(found(r#"{"a":{"x":1,"y":[{"z":1,"z":2}]},"b":null,"c":-1.5,"d":"s","e":[true]}"#), None);
        assert_eq!(found(r#"{"a":1,"b":2,"\u0061":3}"#), Some("a".into()));
        assert_eq!(found(r#"{"a":{"x":1,"y":2,"x":3}}"#), Some("x".into()));
        assert!(find_duplicate("[]").is_err() && find_duplicate(r#"{"a":"#).is_err());
    }
}
