//! Digests of tensors, quick on processors and, by torch, on devices.
//!
//! A tensor's bytes, padded with zeros to a multiple of 8, are little-endian words w. In chunks of 2^20 words,
//! `s = sum of w[i] * (2i + 1)`, i counted from the chunk's start, and then, chunk by chunk from 0,
//! `d = d * 6364136223846793005 + s`; all modulo 2^64. It sees every bit and the order; it is no protection from malice.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use tensorhold::{Device, Loader, Weights};

/// Where the digests of a folder's tensors are: a JSON object of decimal strings by name.
pub(crate) const FILE: &str = "digests.json";

const CHUNK_BYTES: usize = 8 << 20;

pub(crate) type Digests = BTreeMap<String, String>;

pub(crate) fn of(bytes: &[u8]) -> u64 {
    let sum = |chunk: &[u8]| {
        let mut words = chunk.chunks_exact(8);
        let mut factor = 1_u64;
        let mut sum = 0_u64;
        for word in &mut words {
            sum = sum
                .wrapping_add(u64::from_le_bytes(word.try_into().unwrap_or_default()).wrapping_mul(factor));
            factor = factor.wrapping_add(2);
        }
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        sum.wrapping_add(u64::from_le_bytes(last).wrapping_mul(factor))
    };
    bytes
        .chunks(CHUNK_BYTES)
        .fold(0, |digest: u64, chunk| digest.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(sum(chunk)))
}

/// Runs `work` on 0..count with all cores, and collects what it returns.
fn parallel<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let result = work(index);
                    done.lock().unwrap().push(result);
                }
            });
        }
    });
    done.into_inner().unwrap().into_iter().collect()
}

/// The digests of the tensors in some files, by an independent read.
pub(crate) fn of_files(files: &[PathBuf]) -> Result<Digests> {
    let opened: Vec<File> = files.iter().map(File::open).collect::<std::io::Result<_>>()?;
    let mut tensors = Vec::new();
    for (file, opened) in opened.iter().enumerate() {
        let mut length = [0; 8];
        opened.read_exact_at(&mut length, 0)?;
        let mut header = vec![0; u64::from_le_bytes(length) as usize];
        opened.read_exact_at(&mut header, 8)?;
        let metadata: safetensors::tensor::Metadata = serde_json::from_slice(&header)?;
        for (name, info) in metadata.tensors() {
            let start = (8 + header.len() + info.data_offsets.0) as u64;
            tensors.push((file, name, start, info.data_offsets.1 - info.data_offsets.0));
        }
    }
    let digests = parallel(tensors.len(), |index| {
        let (file, name, start, bytes) = &tensors[index];
        let mut buffer = vec![0; *bytes];
        opened[*file].read_exact_at(&mut buffer, *start)?;
        Ok((name.clone(), of(&buffer).to_string()))
    })?;
    Ok(digests.into_iter().collect())
}

/// Compares every tensor with the folder's digests.
pub(crate) fn check(folder: &Path, weights: &Weights) -> Result<()> {
    let digests: Digests = serde_json::from_slice(&std::fs::read(folder.join(FILE))?)?;
    ensure!(digests.len() == weights.len(), "{} tensors, expected {}", weights.len(), digests.len());
    let names: Vec<&String> = digests.keys().collect();
    parallel(names.len(), |index| {
        let digest = of(&weights.view(names[index])?.to_host()?).to_string();
        ensure!(digests[names[index]] == digest, "the bytes of {:?} differ", names[index]);
        Ok(())
    })?;
    Ok(())
}

/// How many bytes of tensors a folder's files hold.
pub(crate) fn bytes(files: &[PathBuf]) -> Result<u64> {
    let inspection = Loader::new(Device::host()).files(files).inspect()?;
    Ok(inspection.tensors.iter().map(|tensor| tensor.nbytes).sum())
}
