//! [`Names`]: what is numbered, by name.

use std::fmt;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Numbers by name. The names stay with what has them, so callers say which name a number has.
#[derive(Clone, Default)]
pub(crate) struct Names {
    numbers: HashTable<usize>,
    hasher: RandomState,
}

impl Names {
    /// A table with room for so many.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { numbers: HashTable::with_capacity(capacity), hasher: RandomState::default() }
    }

    /// Enters a number under a name. If the name is there already, it keeps the number that it has, which is returned.
    pub(crate) fn insert<'a>(
        &mut self,
        name: &str,
        number: usize,
        name_of: impl Fn(usize) -> &'a str,
    ) -> Option<usize> {
        let hash = |name: &str| self.hasher.hash_one(name);
        let same = |&known: &usize| name_of(known) == name;
        match self.numbers.entry(hash(name), same, |&known| hash(name_of(known))) {
            Entry::Occupied(known) => Some(*known.get()),
            Entry::Vacant(vacant) => {
                vacant.insert(number);
                None
            }
        }
    }

    /// The number that a name has.
    pub(crate) fn find<'a>(&self, name: &str, name_of: impl Fn(usize) -> &'a str) -> Option<usize> {
        self.numbers.find(self.hasher.hash_one(name), |&known| name_of(known) == name).copied()
    }

    /// Forgets the numbers from `count` on.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.numbers.retain(|&mut number| number < count);
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("len", &self.numbers.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Names;

    #[test]
    fn a_name_keeps_its_first_number_until_it_is_forgotten() {
        let all: Vec<String> = (0..1000).map(|number| format!("layer.{}", number % 900)).collect();
        let name_of = |number: usize| &*all[number];
        let mut names = Names::with_capacity(10);
        for number in 0..all.len() {
            let before = names.insert(name_of(number), number, name_of);
            assert_eq!(before, number.checked_sub(900));
        }
        assert!((0..900).all(|number| names.find(name_of(number), name_of) == Some(number)));
        assert_eq!(names.find("layer.900", name_of), None);
        names.truncate(500);
        assert!((0..900).all(|number| names.find(name_of(number), name_of).is_some() == (number < 500)));
    }
}
