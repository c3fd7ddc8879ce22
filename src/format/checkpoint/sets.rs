//! The files of a folder as sets, each of which is all weights of a model once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use tensorhold_allocator::Quoted;

use super::names::{self, Name, Part, Reader};

/// Names that a message lists of each kind; it counts the others.
pub(super) const LISTED: usize = 8;

/// Files that belong together by their names, and the indexes of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Set<'a> {
    pub(super) stem: &'a str,
    pub(super) variant: Option<&'a str>,
    pub(super) indexes: Vec<FileName<'a>>,
    /// In the order of their names.
    pub(super) files: Vec<(FileName<'a>, Part)>,
}

/// The name of a file or an index, and its number among those that were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileName<'a> {
    pub(super) number: usize,
    pub(super) name: &'a str,
}

/// Groups names of files and indexes, both in order, into sets, for a caller who wants that variant.
pub(super) fn group<'a, N: AsRef<str>>(
    files: &'a [N],
    indexes: &'a [N],
    wanted: Option<&'a str>,
) -> Vec<Set<'a>> {
    let names = |names: &'a [N]| names.iter().map(AsRef::as_ref);
    let reader = Reader::new(names(files), names(indexes), wanted);
    let mut sets: IndexMap<_, Set<'a>, RandomState> = IndexMap::default();
    let new = |stem, variant| move || Set { stem, variant, indexes: Vec::new(), files: Vec::new() };
    for (number, name) in names(files).enumerate() {
        let Name { stem, variant, part } = reader.file(name);
        let set = sets.entry((stem, variant)).or_insert_with(new(stem, variant));
        set.files.push((FileName { number, name }, part));
    }
    for (number, name) in names(indexes).enumerate() {
        let Some((stem, variant)) = reader.index(name) else { continue };
        let set = sets.entry((stem, variant)).or_insert_with(new(stem, variant));
        set.indexes.push(FileName { number, name });
    }
    sets.into_values().collect()
}

impl Set<'_> {
    /// The numbers of the shards, each with the files that have it, by how many shards there are in all.
    fn shards(&self) -> BTreeMap<u64, BTreeMap<u64, Vec<&str>>> {
        let mut shards: BTreeMap<u64, BTreeMap<u64, Vec<&str>>> = BTreeMap::new();
        for (file, part) in &self.files {
            if let Part::Shard { number, of } = part {
                shards.entry(*of).or_default().entry(*number).or_default().push(file.name);
            }
        }
        shards
    }

    /// Why the files, by their names, are not the weights once and completely.
    pub(super) fn problem(&self) -> Option<String> {
        let kind = |part: &Part| match part {
            Part::Whole => 0,
            Part::Shard { .. } => 1,
            Part::Numbered(_) => 2,
        };
        let first_of =
            |wanted| self.files.iter().find(|(_, part)| kind(part) == wanted).map(|(file, _)| file.name);
        let kinds: Vec<_> = (0..3).filter_map(first_of).collect();
        if let [one, other, ..] = kinds[..] {
            return Some(format!(
                "the folder holds {self} in two forms, {} and {}, expected one; name one of the files, an index, \
                 or a folder that holds one of the two",
                Quoted(one),
                Quoted(other)
            ));
        }
        let shards = self.shards();
        let mut counts = shards.iter();
        match (counts.next(), counts.next()) {
            (Some((one, _)), Some((other, _))) => Some(format!(
                "the folder holds shards of {self} in sets of {one} and of {other}, expected one set; \
                 remove one of the two, or name an index"
            )),
            (Some((of, shards)), None) => self.shard_problem(*of, shards),
            (None, _) => self.numbering_problem(),
        }
    }

    fn shard_problem(&self, of: u64, shards: &BTreeMap<u64, Vec<&str>>) -> Option<String> {
        if let Some([one, other, ..]) = shards.values().map(|files| &files[..]).find(|files| files.len() > 1)
        {
            return Some(format!(
                "the folder holds a shard of {self} twice, as {} and as {}, expected once; remove one of the two",
                Quoted(one),
                Quoted(other)
            ));
        }
        // Most tools count from 1 to the count; some from 0, to below the count or to the count itself.
        let (first, last) = match (shards.contains_key(&0), shards.contains_key(&of)) {
            (false, _) => (1, of),
            (true, false) => (0, of.saturating_sub(1)),
            (true, true) => (0, of),
        };
        if let Some((_, files)) = shards.iter().find(|(number, _)| of == 0 || **number > last) {
            return Some(format!(
                "the folder holds {}, expected shards of {self} that are numbered up to {last}; \
                 fetch the checkpoint again, or name its files",
                List::new(files.iter().copied())
            ));
        }
        let all = (last - first).saturating_add(1);
        let missing = all.saturating_sub(shards.len() as u64);
        if missing == 0 {
            return None;
        }
        let a_shard = shards.values().flatten().next().copied().unwrap_or_default();
        let numbers = (first..=last).filter(|number| !shards.contains_key(number)).take(LISTED);
        let names = numbers.map(|number| names::renumbered(a_shard, number).unwrap_or_default());
        let names: Vec<_> = names.collect();
        let listed =
            List { names: names.iter().map(|name| &**name).collect(), more: missing - names.len() as u64 };
        Some(format!(
            "of the {all} shards of {self}, {missing} {} missing: {listed}; the download may be incomplete: fetch the rest, \
             or load single shards by their names",
            if missing == 1 { "is" } else { "are" }
        ))
    }

    fn numbering_problem(&self) -> Option<String> {
        let numbered = |part: &Part| if let Part::Numbered(number) = part { Some(*number) } else { None };
        let numbers: BTreeSet<u64> = self.files.iter().filter_map(|(_, part)| numbered(part)).collect();
        // How many there are is not known. They are counted from 0.
        let &last = numbers.last()?;
        if numbers.len() != self.files.len() {
            return Some(format!(
                "the folder holds a part of {self} twice, expected once; remove one of the two"
            ));
        }
        let missing = last.saturating_add(1) - numbers.len() as u64;
        let mut gaps = (0..=last).filter(|number| !numbers.contains(number));
        (missing > 0).then(|| {
            let gap = gaps.next().unwrap_or_default();
            format!(
                "the parts of {self} are numbered 0 to {last}, and {missing} of them {} missing, the first of them {gap}; \
                 fetch the rest, or load single parts by their names",
                if missing == 1 { "is" } else { "are" }
            )
        })
    }
}

impl fmt::Display for Set<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stem {
            "" => f.write_str("a model without a name")?,
            stem => write!(f, "{}", Quoted(stem))?,
        }
        self.variant.map_or(Ok(()), |variant| write!(f, " of variant {}", Quoted(variant)))
    }
}

/// Names, the first few of which are shown.
pub(in crate::format) struct List<'a> {
    names: Vec<&'a str>,
    more: u64,
}

impl<'a> List<'a> {
    pub(in crate::format) fn new(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut names = names.into_iter();
        Self { names: names.by_ref().take(LISTED).collect(), more: names.count() as u64 }
    }
}

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, name) in self.names.iter().enumerate() {
            write!(f, "{}{}", if number == 0 { "" } else { ", " }, Quoted(name))?;
        }
        if self.more > 0 {
            write!(f, " and {} more", self.more)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(files: &[&str]) -> Option<String> {
        let mut files: Vec<_> = files.iter().map(|stem| format!("{stem}.safetensors")).collect();
        files.sort();
        let sets = group(&files, &[], None);
        assert_eq!(sets.len(), 1, "{sets:?}");
        sets[0].problem()
    }

    #[track_caller]
    fn assert_says(files: &[&str], words: &[&str]) {
        let problem = problem(files).expect("it is complete");
        assert!(words.iter().all(|word| problem.contains(word)), "{problem}");
        assert!(problem.len() < 1000, "{problem}");
    }

    #[test]
    fn complete_sets_have_no_problem() {
        for files in [
            &["model"][..],
            &["m-1-of-2", "m-2-of-2"],
            &["m-00000-of-00002", "m-00001-of-00002"],
            &["m-1-of-3", "m-00002-of-0003", "m-3-of-3"],
            &["m.fp16-1-of-2", "m-2-of-2.fp16"],
            &["consolidated.00", "consolidated.01"],
            &["m-0-of-2", "m-1-of-2", "m-2-of-2"],
            &["00001-of-00002", "00002-of-00002"],
            &["m.1OF2", "m-00002-of-00002"],
        ] {
            assert_eq!(problem(files), None, "{files:?}");
        }
    }

    #[test]
    fn missing_shards_are_named_up_to_a_limit() {
        assert_says(
            &["m-00001-of-00002"],
            &["of the 2 shards of \"m\", 1 is missing", "\"m-00002-of-00002.safetensors\""],
        );
        assert_says(&["m-2-of-3"], &["2 are missing", "\"m-1-of-3.safetensors\", \"m-3-of-3.safetensors\""]);
        assert_says(&["m-0-of-2"], &["\"m-1-of-2.safetensors\""]);
        assert_says(&["m-0-of-2", "m-2-of-2"], &["of the 3 shards", "\"m-1-of-2.safetensors\""]);
        assert_says(&["00001-of-00002"], &["a model without a name", "\"00002-of-00002.safetensors\""]);
        for name in ["m.1-of-2", "m-1-OF-2", "m-1of2", "m_1_of_2", "m-1-of-2-fp16", "1of2"] {
            assert_says(&[name], &["1 is missing", &name.replacen('1', "2", 1)]);
        }
        assert_says(
            &["m-0-of-18446744073709551615", "m-18446744073709551615-of-18446744073709551615"],
            &["are missing"],
        );
        assert_says(&["m-2-of-5000"], &["4999 are missing", "m-9-of-5000", "and 4991 more"]);
        assert_says(&["m-1-of-18446744073709551615"], &["18446744073709551614 are missing"]);
        assert_says(&["m-1-of-2.fp16"], &["\"m\" of variant \"fp16\"", "m-2-of-2.fp16.safetensors"]);
        assert_says(&["consolidated.00", "consolidated.03"], &["numbered 0 to 3", "2 of them are missing"]);
        assert_says(&["consolidated.2"], &["2 of them are missing, the first of them 0"]);
        assert_says(&["consolidated.01", "consolidated.02"], &["1 of them is missing, the first of them 0"]);
        assert_says(&["consolidated.18446744073709551615"], &["are missing"]);
    }

    #[test]
    fn contradictory_names_are_problems() {
        assert_says(&["m", "m-1-of-1"], &["in two forms", "\"m.safetensors\"", "m-1-of-1"]);
        assert_says(&["model", "model.0"], &["in two forms"]);
        assert_says(&["m-1-of-1", "m-1-of-2"], &["in sets of 1 and of 2"]);
        assert_says(&["m-1-of-2", "m-01-of-2", "m-2-of-2"], &["twice", "m-01-of-2", "m-1-of-2"]);
        assert_says(&["m-1-of-2", "m-3-of-2"], &["m-3-of-2", "up to 2"]);
        assert_says(&["m-0-of-2", "m-1-of-2", "m-3-of-2"], &["m-3-of-2", "up to 1"]);
        assert_says(&["m-0-of-0"], &["m-0-of-0"]);
        assert_says(&["model.0", "model.00"], &["twice"]);
    }
}
