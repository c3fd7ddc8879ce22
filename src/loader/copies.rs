//! Tensors that lie in several files of an index, as after a patch that brings some tensors in a file of its own: each is loaded from the file that the
//! index names, and its copies are left out.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tensorhold_allocator::Quoted;

use super::headers::Opened;
use crate::error::Result;
use crate::format::{Index, LeftOut};
use crate::names::Names;

/// Leaves out the copies in the files of an index. Where a header has not been read, all stay.
pub(super) fn leave_out(files: &mut [Opened], index: &Index) -> Result<Vec<LeftOut>> {
    if files.len() < 2 || files.iter().any(|file| file.header.said().is_none()) {
        return Ok(Vec::new());
    }
    let copied = copied(files);
    if copied.is_empty() {
        return Ok(Vec::new());
    }
    let named = index.files_of(&copied.keys().copied().collect());
    // Where the named file does not have it, none of the others is a copy.
    let named = named
        .into_iter()
        .filter(|(tensor, file)| copied.get(tensor).is_some_and(|files| files.contains(file)));
    let named: HashMap<_, _, RandomState> = named.map(|(tensor, file)| (tensor.to_owned(), file)).collect();
    let mut left_out = Vec::new();
    for (number, file) in files.iter_mut().enumerate() {
        let others = file.retain(|info| Ok(named.get(&*info.name).is_none_or(|named| *named == number)))?;
        if let Some(first) = others.first() {
            let why = format!(
                "{} of its tensors, such as {}, are loaded from other files, by the index",
                others.len(),
                Quoted(&first.info.name)
            );
            left_out.push(LeftOut { path: file.source.path().to_path_buf(), why });
        }
    }
    Ok(left_out)
}

/// The names that tensors of several files have, each with the numbers of the files.
fn copied(files: &[Opened]) -> HashMap<&str, Vec<usize>, RandomState> {
    let count = files.iter().map(|file| file.places.len()).sum();
    let (mut known, mut numbers) = (Vec::<(&str, usize)>::with_capacity(count), Names::with_capacity(count));
    let mut copied: HashMap<_, Vec<_>, _> = HashMap::default();
    for (number, file) in files.iter().enumerate() {
        for name in names(file) {
            let first =
                numbers.insert(name, known.len(), |number| known.get(number).map_or("", |(name, _)| name));
            match first.and_then(|first| known.get(first)) {
                // A name that one file has twice is an error of that file.
                Some((_, first)) if *first != number => {
                    copied.entry(name).or_insert_with(|| vec![*first]).push(number);
                }
                Some(_) => {}
                None => known.push((name, number)),
            }
        }
    }
    copied
}

fn names(file: &Opened) -> impl Iterator<Item = &str> {
    let said = file.header.said().into_iter();
    said.flat_map(|said| &said.descriptions).map(|description| &*description.info.name)
}
