//! Streams a checkpoint of pseudo-random bytes to disk, with several threads and a block of memory for each.
//!
//! The bytes depend on the seed, the shard and their position alone, so the same call writes the same files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::json;

use super::shapes::{Shard, Spec};

/// What a thread generates and writes at once. A multiple of a word.
const BLOCK_BYTES: u64 = 4 << 20;
const WORD_BYTES: u64 = size_of::<u64>() as u64;

/// More writers than this gain little on any disk.
const MAX_THREADS: usize = 16;

/// Writes the shards and their index. `create` makes a file of the given name; `written` is told of bytes as they are
/// written, from several threads.
pub(crate) fn write(
    shards: &[Shard],
    seed: u64,
    mut create: impl FnMut(&str) -> anyhow::Result<File>,
    written: impl Fn(u64) + Sync,
) -> anyhow::Result<()> {
    let mut files = Vec::with_capacity(shards.len());
    for (index, shard) in shards.iter().enumerate() {
        let mut file = create(&shard.name)?;
        let header = header(&shard.tensors);
        file.write_all(&header).map_err(refused(&shard.name))?;
        let (start, bytes) = (header.len() as u64, shard.bytes());
        files.push(Target { name: &shard.name, file, start, bytes, key: mix(seed ^ mix(index as u64)) });
    }
    write_data(&files, written)?;
    let name = "model.safetensors.index.json";
    Ok(create(name)?.write_all(index(shards).as_bytes()).map_err(refused(name))?)
}

/// The error for a file that the system does not write.
fn refused(name: &str) -> impl FnOnce(io::Error) -> tensorhold::Error {
    move |source| tensorhold::Error::Io { operation: "write", path: name.into(), source }
}

/// A file whose header has been written.
struct Target<'a> {
    name: &'a str,
    file: File,
    /// Where its data begins, and how long that is.
    start: u64,
    bytes: u64,
    /// Of its bytes.
    key: u64,
}

impl Target<'_> {
    /// Generates block number `block` in `buffer`, writes it, and returns its length; 0 behind the end.
    fn write_block(&self, block: u64, buffer: &mut [u8]) -> io::Result<u64> {
        let at = block * BLOCK_BYTES;
        let length = self.bytes.saturating_sub(at).min(BLOCK_BYTES);
        let buffer = &mut buffer[..length as usize];
        generate(buffer, self.key, at / WORD_BYTES);
        self.file.write_all_at(buffer, self.start + at)?;
        Ok(length)
    }
}

/// Writes all files' data. Threads write to different files, since a file system may let only one write to each.
fn write_data(files: &[Target<'_>], written: impl Fn(u64) + Sync) -> anyhow::Result<()> {
    let blocks = files.iter().map(|file| file.bytes.div_ceil(BLOCK_BYTES)).max().unwrap_or(0);
    let jobs = blocks * files.len() as u64;
    let next = AtomicU64::new(0);
    let work = || {
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= jobs {
                return Ok(());
            }
            let file = &files[(job % files.len() as u64) as usize];
            match file.write_block(job / files.len() as u64, &mut buffer) {
                Ok(bytes) => written(bytes),
                Err(error) => {
                    // No more blocks for anyone.
                    next.fetch_max(jobs, Ordering::Relaxed);
                    return Err(refused(file.name)(error).into());
                }
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        // This thread is one of them: the others are help, of which the system may refuse some.
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let writers: Vec<_> = (1..cores.min(MAX_THREADS)).map_while(start).collect();
        work()?;
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })
}

/// The length and the header, padded so that the data begins at a multiple of 8.
pub(crate) fn header(tensors: &[Spec]) -> Vec<u8> {
    let mut entries = serde_json::Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end] });
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut json = serde_json::Value::Object(entries).to_string();
    json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json.as_bytes());
    header
}

/// The JSON that says which tensor is in which shard.
pub(crate) fn index(shards: &[Shard]) -> String {
    let entries =
        shards.iter().flat_map(|shard| shard.tensors.iter().map(|tensor| (&tensor.name, &shard.name)));
    let files: BTreeMap<_, _> = entries.collect();
    let total_size: u64 = shards.iter().map(Shard::bytes).sum();
    json!({ "metadata": { "total_size": total_size }, "weight_map": files }).to_string()
}

/// Fills `buffer` with the words `first_word..` of the stream that `key` names.
fn generate(buffer: &mut [u8], key: u64, first_word: u64) {
    let word = |index: u64| mix(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes();
    let mut words = buffer.chunks_exact_mut(WORD_BYTES as usize);
    let mut index = first_word;
    for chunk in &mut words {
        chunk.copy_from_slice(&word(index));
        index += 1;
    }
    let rest = words.into_remainder();
    rest.copy_from_slice(&word(index)[..rest.len()]);
}

/// The finalizer of SplitMix64: a bijection that looks random.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    use safetensors::SafeTensors;

    use super::super::shapes::{Shard, llama};
    use super::{generate, write};

    fn written(folder: &Path, shards: &[Shard], seed: u64) -> Vec<Vec<u8>> {
        let bytes = AtomicU64::new(0);
        let create = |name: &str| Ok(File::create_new(folder.join(name))?);
        let count = |more| {
            bytes.fetch_add(more, Ordering::Relaxed);
        };
        write(shards, seed, create, count).unwrap();
        assert_eq!(bytes.into_inner(), shards.iter().map(Shard::bytes).sum::<u64>());
        shards.iter().map(|shard| fs::read(folder.join(&shard.name)).unwrap()).collect()
    }

    fn in_new_folder(seed: u64) -> Vec<Vec<u8>> {
        written(tempfile::tempdir().unwrap().path(), &llama(40_000_000), seed)
    }

    #[test]
    fn files_hold_the_tensors_and_the_index_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let shards = llama(40_000_000);
        let index = |key: &str| {
            let index = fs::read(folder.path().join("model.safetensors.index.json")).unwrap();
            serde_json::from_slice::<serde_json::Value>(&index).unwrap()["weight_map"][key].clone()
        };
        for (shard, bytes) in shards.iter().zip(written(folder.path(), &shards, 0)) {
            let parsed = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(parsed.len(), shard.tensors.len());
            for tensor in &shard.tensors {
                assert_eq!(parsed.tensor(&tensor.name).unwrap().shape(), tensor.shape);
                assert_eq!(index(&tensor.name), *shard.name);
            }
        }
    }

    #[test]
    fn a_seed_decides_every_byte() {
        assert!(in_new_folder(7) == in_new_folder(7));
        assert!(in_new_folder(7) != in_new_folder(8));
    }

    #[test]
    fn tensors_and_shards_differ() {
        let files = in_new_folder(0);
        let mut ends: Vec<_> = files.iter().map(|file| &file[file.len() - 64..]).collect();
        ends.sort_unstable();
        ends.dedup();
        assert_eq!(ends.len(), files.len());
        let zeros = files[0].iter().filter(|&&byte| byte == 0).count();
        assert!(zeros < files[0].len() / 100, "{zeros}");
    }

    #[test]
    fn blocks_join_to_one_stream() {
        let (mut whole, mut parts) = ([0; 45], [0; 45]);
        generate(&mut whole, 3, 10);
        let (left, right) = parts.split_at_mut(16);
        generate(left, 3, 10);
        generate(right, 3, 12);
        assert_eq!(whole, parts);
    }
}
