//! Tensors that several files of an index hold, as after a patch that replaces some tensors by a new file.
//! Each is loaded from the file that the index names; the copies are left out.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tensorhold_allocator::Quoted;

use super::header::OpenedFile;
use crate::error::Result;
use crate::format::{Index, LeftOut};
use crate::names::Names;

/// Removes the copies from the files of an index. Does nothing unless all headers are parsed.
pub(crate) fn leave_out(files: &mut [OpenedFile], index: &Index) -> Result<Vec<LeftOut>> {
    if files.len() < 2 || files.iter().any(|file| file.header.parsed().is_none()) {
        return Ok(Vec::new());
    }
    let copied = copied(files);
    if copied.is_empty() {
        return Ok(Vec::new());
    }
    let named = index.files_of(&copied.keys().copied().collect());
    // If the named file does not hold the tensor, the others are not copies of it.
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

/// The tensor names that occur in several files, each with the numbers of those files.
fn copied(files: &[OpenedFile]) -> HashMap<&str, Vec<usize>, RandomState> {
    let count = files.iter().map(|file| file.places.len()).sum();
    let (mut known, mut numbers) = (Vec::<(&str, usize)>::with_capacity(count), Names::with_capacity(count));
    let mut copied: HashMap<_, Vec<_>, _> = HashMap::default();
    for (number, file) in files.iter().enumerate() {
        for name in names(file) {
            let first =
                numbers.insert(name, known.len(), |number| known.get(number).map_or("", |(name, _)| name));
            match first.and_then(|first| known.get(first)) {
                // A name that occurs twice in one file is reported when that file is checked.
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

fn names(file: &OpenedFile) -> impl Iterator<Item = &str> {
    let parsed = file.header.parsed().into_iter();
    parsed.flat_map(|parsed| &parsed.descriptions).map(|description| &*description.info.name)
}
