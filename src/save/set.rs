//! Files that were written together, and whether they still are together.

use std::path::Path;

use tensorhold_allocator::Quoted;

use crate::error::{Error, Result};
use crate::weights::Metadata;

/// The key of a file's number in its set, from 0 on; that and the others as `fastsafetensors` has them.
pub const KEY_SHARD_INDEX: &str = "fst.shard.index";

/// The key of the number of files in a set.
pub const KEY_SHARD_COUNT: &str = "fst.shard.count";

/// The key of the name of a set.
pub const KEY_SHARD_SET: &str = "fst.shard.set";

/// The strings that mark a file of a set.
pub(super) fn mark(set: &str, number: usize, shards: usize) -> [(&'static str, String); 3] {
    [
        (KEY_SHARD_INDEX, number.to_string()),
        (KEY_SHARD_COUNT, shards.to_string()),
        (KEY_SHARD_SET, set.to_owned()),
    ]
}

/// Checks that files, each with the strings in its header, are all of one set, as it was written, in its order.
///
/// # Errors
/// When there are none, one is no file of a set, they are of several sets, or one is missing, there twice or out of order.
pub fn validate_shard_set<'a>(shards: impl IntoIterator<Item = (&'a Path, &'a Metadata)>) -> Result<()> {
    let shards: Vec<_> = shards.into_iter().collect();
    let Some(&(first, metadata)) = shards.first() else {
        return Err(error(
            Path::new(""),
            "there are no shards, expected all files of a set; name them".into(),
        ));
    };
    let set = metadata.get(KEY_SHARD_SET);
    for (number, (path, metadata)) in shards.iter().enumerate() {
        let count = |key| metadata.get(key).and_then(|value| value.parse::<usize>().ok());
        let (Some(index), Some(count), Some(own)) =
            (count(KEY_SHARD_INDEX), count(KEY_SHARD_COUNT), metadata.get(KEY_SHARD_SET))
        else {
            let problem =
                "it is not a shard of a written set, expected one with its mark; write the set again";
            return Err(error(path, problem.into()));
        };
        if set != Some(own) {
            let other = set.map_or("none", String::as_str);
            return Err(error(
                path,
                format!(
                    "it is of set {} and {first:?} of {}: they were written separately, expected one set; \
                     use files that were written together",
                    Quoted(own),
                    Quoted(other)
                ),
            ));
        }
        if (index, count) != (number, shards.len()) {
            return Err(error(
                path,
                format!(
                    "it is shard {index} of {count}, expected {number} of {}; name all files of the set, in order",
                    shards.len()
                ),
            ));
        }
    }
    Ok(())
}

fn error(path: &Path, problem: String) -> Error {
    Error::ShardSet { path: path.into(), problem }
}
