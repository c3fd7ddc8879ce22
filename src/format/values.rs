//! The values in what a header says of a tensor, each looked at whatever its type is: the parser's own errors would quote texts of any length.

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use tensorhold_allocator::{Brief, Quoted};

use super::json::Text;
use super::problem::{Problem, Wrong};
use crate::dtype::DType;
use crate::shape::Shape;

/// No shape has more dimensions: only 63 of them can be longer than 1, and a number takes four times what its text does.
const MAX_DIMENSIONS: usize = 4096;

/// What is common to all parts of a header.
#[derive(Default)]
pub(super) struct Reader {
    /// What is wrong, if it is more than the parser knows.
    pub(super) problem: Option<Problem>,
    /// What is wrong with the tensor that is being read.
    pub(super) wrong: Option<Wrong>,
    /// The dimensions of the tensor that is being read.
    pub(super) dimensions: Vec<usize>,
    pub(super) seen: Seen,
}

impl Reader {
    pub(super) fn fail<E: Error>(&mut self, problem: Problem) -> E {
        self.problem.get_or_insert(problem);
        E::custom("see the problem")
    }

    pub(super) fn fail_tensor<E: Error>(&mut self, wrong: impl Into<Wrong>) -> E {
        self.wrong.get_or_insert_with(|| wrong.into());
        E::custom("see the problem")
    }
}

/// The keys of the objects that are being read, of those that the format does not have: by their hashes, which are compared at an object's end. Two keys
/// that differ have the same hash with a probability of 2^-64, and no one can choose them so, since the hasher is keyed at random.
#[derive(Default)]
pub(super) struct Seen {
    hashes: Vec<u64>,
    hasher: RandomState,
    objects: u64,
    /// A hash that an object has twice, when its key is looked for; and whether it has been found once.
    watched: Option<(u64, bool)>,
}

/// An object that is being read: its number, and where its hashes begin.
#[derive(Clone, Copy)]
pub(super) struct Object(u64, usize);

impl Seen {
    /// Looks for the key of which an object has two, now that one has.
    pub(super) fn again(mut self) -> Option<Self> {
        self.watched?;
        self.hashes.clear();
        self.objects = 0;
        Some(self)
    }

    pub(super) fn object(&mut self) -> Object {
        self.objects += 1;
        Object(self.objects, self.hashes.len())
    }

    /// Notes a key of an object. Returns whether it is that which is looked for.
    pub(super) fn note(&mut self, object: Object, key: &str) -> bool {
        let hash = self.hasher.hash_one((object.0, key));
        match &mut self.watched {
            Some((watched, found)) if *watched == hash => std::mem::replace(found, true),
            Some(_) => false,
            None => {
                self.hashes.push(hash);
                false
            }
        }
    }

    /// Whether an object that ends has had two of a key.
    pub(super) fn has_twice(&mut self, object: Object) -> bool {
        let hashes = self.hashes.get_mut(object.1..).unwrap_or_default();
        hashes.sort_unstable();
        let twice = hashes.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| (pair[0], false));
        self.hashes.truncate(object.1);
        self.watched = self.watched.or(twice);
        twice.is_some()
    }
}

/// The methods of a visitor for the values that it cannot use, which `refuse` makes an error of.
macro_rules! refuses {
    ($($value:ident)*) => { $(refuses! { @ $value })* };
    (@ scalars) => {
        fn visit_bool<E: Error>(self, got: bool) -> Result<Self::Value, E> {
            Err(self.refuse(got))
        }

        fn visit_u64<E: Error>(self, got: u64) -> Result<Self::Value, E> {
            Err(self.refuse(got))
        }

        fn visit_i64<E: Error>(self, got: i64) -> Result<Self::Value, E> {
            Err(self.refuse(got))
        }

        fn visit_f64<E: Error>(self, got: f64) -> Result<Self::Value, E> {
            // With its point: 4.0.
            Err(self.refuse(format_args!("{got:?}")))
        }
    };
    (@ null) => {
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Err(self.refuse("null"))
        }
    };
    (@ text) => {
        fn visit_str<E: Error>(self, got: &str) -> Result<Self::Value, E> {
            Err(self.refuse(tensorhold_allocator::Quoted(got)))
        }
    };
    (@ list) => {
        fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(self.refuse("a list"))
        }
    };
    (@ object) => {
        fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(self.refuse("an object"))
        }
    };
}

pub(super) use refuses;

/// A value of any type, which the visitor looks at.
macro_rules! seed {
    ($seed:ident gives $value:ty) => {
        impl<'de> DeserializeSeed<'de> for $seed<'_> {
            type Value = $value;

            fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<$value, D::Error> {
                json.deserialize_any(self)
            }
        }
    };
}

pub(super) use seed;

/// The name of a type.
pub(super) struct TypeName<'r>(pub(super) &'r mut Reader);

seed!(TypeName gives DType);

impl TypeName<'_> {
    fn refuse<E: Error>(self, got: impl fmt::Display) -> E {
        self.0.fail_tensor(format!("its \"dtype\" is {got}, expected a string"))
    }
}

impl<'de> Visitor<'de> for TypeName<'_> {
    type Value = DType;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a type")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<DType, E> {
        DType::from_name(name).ok_or_else(|| self.0.fail_tensor(Wrong::Dtype(Quoted(name).to_string())))
    }

    refuses! { scalars null list object }
}

/// A shape.
pub(super) struct Dimensions<'r>(pub(super) &'r mut Reader);

seed!(Dimensions gives Shape);

impl Dimensions<'_> {
    fn refuse<E: Error>(self, got: impl fmt::Display) -> E {
        self.0.fail_tensor(not_numbers("shape", got))
    }
}

impl<'de> Visitor<'de> for Dimensions<'_> {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let reader = self.0;
        reader.dimensions.clear();
        while let Some(dimension) = list.next_element_seed(Number { reader, of: "shape" })? {
            if reader.dimensions.len() == MAX_DIMENSIONS {
                let wrong = format!("its \"shape\" has more than {MAX_DIMENSIONS} dimensions");
                return Err(reader.fail_tensor(format!("{wrong}, expected at most as many")));
            }
            reader.dimensions.push(dimension as usize);
        }
        Ok(reader.dimensions.as_slice().into())
    }

    refuses! { scalars null text object }
}

/// Where a tensor begins and ends.
pub(super) struct Offsets<'r>(pub(super) &'r mut Reader);

seed!(Offsets gives (u64, u64));

impl Offsets<'_> {
    fn refuse<E: Error>(self, got: impl fmt::Display) -> E {
        self.0.fail_tensor(not_numbers("data_offsets", got))
    }
}

impl<'de> Visitor<'de> for Offsets<'_> {
    type Value = (u64, u64);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(u64, u64), A::Error> {
        let reader = self.0;
        let mut next = || list.next_element_seed(Number { reader: &mut *reader, of: "data_offsets" });
        let (start, end) = (next()?, next()?);
        let more = end.is_some() && next()?.is_some();
        match (start, end) {
            (Some(start), Some(end)) if !more => Ok((start, end)),
            _ => {
                let got = if more {
                    "more"
                } else if start.is_some() {
                    "one"
                } else {
                    "none"
                };
                Err(reader.fail_tensor(format!("its \"data_offsets\" has {got}, expected two numbers")))
            }
        }
    }

    refuses! { scalars null text object }
}

/// A number in a list.
struct Number<'r> {
    reader: &'r mut Reader,
    of: &'static str,
}

seed!(Number gives u64);

impl Number<'_> {
    fn refuse<E: Error>(self, got: impl fmt::Display) -> E {
        self.reader.fail_tensor(not_numbers(self.of, format_args!("a list with {got}")))
    }
}

impl<'de> Visitor<'de> for Number<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_i64<E: Error>(self, got: i64) -> Result<u64, E> {
        Err(self.refuse(got))
    }

    fn visit_f64<E: Error>(self, got: f64) -> Result<u64, E> {
        // With its point: 4.0.
        Err(self.refuse(format_args!("{got:?}")))
    }

    fn visit_bool<E: Error>(self, got: bool) -> Result<u64, E> {
        Err(self.refuse(got))
    }

    /// Where an application has turned on serde_json's `arbitrary_precision`, numbers come as objects.
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<u64, A::Error> {
        match serde_json::Number::deserialize(MapAccessDeserializer::new(map)) {
            Ok(number) => number.as_u64().ok_or_else(|| self.refuse(Brief(number))),
            Err(_) => Err(self.refuse("an object")),
        }
    }

    refuses! { null text list }
}

fn not_numbers(field: &str, got: impl fmt::Display) -> String {
    format!("its {field:?} is {got}, expected a list of whole numbers from 0 to 2^64-1")
}

/// A value that is not used. Whether its objects have keys twice is looked at, or left to be.
pub(super) struct Skipped<'r> {
    pub(super) reader: &'r mut Reader,
    pub(super) keys: bool,
}

seed!(Skipped gives ());

impl<'de> Visitor<'de> for Skipped<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { reader, keys } = self;
        let object = reader.seen.object();
        while let Some(Text(key)) = map.next_key()? {
            map.next_value_seed(Skipped { reader, keys })?;
            if keys && reader.seen.note(object, &key) {
                return Err(reader.fail(Problem::duplicate(&key)));
            }
        }
        if reader.seen.has_twice(object) {
            return Err(A::Error::custom("a key is there twice"));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { reader, keys } = self;
        while list.next_element_seed(Skipped { reader, keys })?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}
