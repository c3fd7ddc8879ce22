//! The free-form strings of a header, kept close together until all of the header is found to be right: a map of millions of short strings takes
//! many times what the header does.

use std::collections::BTreeMap;

use super::problem::Problem;

/// Keys and values in the order in which they are written.
#[derive(Debug, Clone, Default)]
pub(super) struct Strings {
    /// All of them, one after the other: a key, its value, the next key.
    text: String,
    /// Where each key ends, and where its value does. Headers have at most 100 MB ([`MAX_HEADER_LEN`](super::MAX_HEADER_LEN)).
    ends: Vec<[u32; 2]>,
}

impl Strings {
    pub(super) fn push(&mut self, key: &str, value: &str) {
        self.text.push_str(key);
        let key_end = self.text.len() as u32;
        self.text.push_str(value);
        self.ends.push([key_end, self.text.len() as u32]);
    }

    fn pair(&self, number: u32) -> (&str, &str) {
        let number = number as usize;
        let start = number.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |ends| ends[1]);
        let [key_end, end] = self.ends.get(number).copied().unwrap_or_default();
        let text = |from: u32, to: u32| self.text.get(from as usize..to as usize).unwrap_or_default();
        (text(start, key_end), text(key_end, end))
    }

    /// Checks that no two keys are the same.
    pub(super) fn sort(self) -> Result<Sorted, Problem> {
        // Nearly all keys differ in their first bytes, which are at hand.
        let mut order: Vec<(u64, u32)> =
            (0..self.ends.len() as u32).map(|number| (first_bytes(self.pair(number).0), number)).collect();
        let key = |(first, number): &(u64, u32)| (*first, self.pair(*number).0);
        order.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
        match order.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
            Some(twice) => Err(Problem::duplicate(self.pair(twice[0].1).0)),
            None => Ok(Sorted { strings: self, order }),
        }
    }
}

/// The first 8 bytes of a text, as a number that compares as they do.
fn first_bytes(text: &str) -> u64 {
    let mut first = [0; 8];
    first.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    u64::from_be_bytes(first)
}

/// Strings whose keys are all different.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sorted {
    strings: Strings,
    /// The numbers of the keys in their order, each behind the first bytes of its key.
    order: Vec<(u64, u32)>,
}

impl Sorted {
    pub(crate) fn into_map(self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (_, number) in self.order {
            let (key, value) = self.strings.pair(number);
            map.insert(key.to_owned(), value.to_owned());
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strings_are_a_map_unless_a_key_is_there_twice(
            pairs in prop::collection::vec(("[ab\u{0}\u{80}é]{0,10}", "[a-c]{0,2}"), 0..30)
        ) {
            let mut strings = Strings::default();
            pairs.iter().for_each(|(key, value)| strings.push(key, value));
            let map: BTreeMap<String, String> = pairs.iter().cloned().collect();
            match strings.sort() {
                Ok(sorted) => prop_assert_eq!((sorted.into_map(), pairs.len()), (map.clone(), map.len())),
                Err(problem) => {
                    prop_assert!(map.len() < pairs.len());
                    prop_assert!(problem.to_string().contains("twice"));
                }
            }
        }
    }
}
