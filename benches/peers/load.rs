//! One load, timed from before the first open to all tensors being usable, with the device's context already there.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tensorhold::allocator::{Fragment, Pool, Request};
use tensorhold::{Backend, BackendKind, Device, Loader};

use super::{digest, files};

pub(crate) fn load(entry: &str, folder: &Path, device: &Device) -> Result<Value> {
    if entry == "mapped" {
        return mapped(folder, device);
    }
    let backend = match entry.strip_prefix("tensorhold-") {
        None => Backend::Auto,
        Some(name) => {
            let kind = BackendKind::ALL.into_iter().find(|kind| kind.name() == name);
            Backend::Require(kind.with_context(|| format!("there is no entry {entry:?}"))?)
        }
    };
    let (before, started) = (resident("VmRSS:"), Instant::now());
    let mut loader = Loader::new(device.clone()).checkpoint(folder)?;
    if backend != Backend::Auto {
        loader = loader.backend(backend);
    }
    let weights = loader.load()?;
    let seconds = started.elapsed().as_secs_f64();
    let host = grown(before);
    let report = weights.report().clone();
    let checked = digest::check(folder, &weights);
    Ok(result(entry, seconds, report.bytes, report.tensors, host, &checked, &json!(report)))
}

/// What engines do today: map the file, and copy tensor by tensor.
fn mapped(folder: &Path, device: &Device) -> Result<Value> {
    let pool = Pool::builder(device.memory()).build()?;
    let stream = device.driver().stream()?;
    let (before, started) = (resident("VmRSS:"), Instant::now());
    let mut tensors: Vec<(String, Fragment)> = Vec::new();
    let mut maps = Vec::new();
    for path in files(folder)? {
        // SAFETY: no one writes to the files of a benchmark.
        maps.push(unsafe { Mmap::map(&File::open(path)?) }?);
    }
    for map in &maps {
        for (name, tensor) in SafeTensors::deserialize(map)?.iter() {
            let bytes = tensor.data();
            let memory = pool.place(name, Request::new(bytes.len() as u64, 256))?;
            // SAFETY: both ends are as long, and stay until the stream has been synchronized.
            unsafe { stream.copy_to_device(memory.as_ptr().cast_mut(), bytes.as_ptr(), memory.len()) }?;
            tensors.push((name.to_owned(), memory));
        }
    }
    stream.synchronize()?;
    let seconds = started.elapsed().as_secs_f64();
    let host = grown(before);
    let digests: digest::Digests = serde_json::from_slice(&std::fs::read(folder.join(digest::FILE))?)?;
    let checked = tensors.iter().try_for_each(|(name, memory)| {
        let mut copy = vec![0; memory.len() as usize];
        // SAFETY: as above.
        unsafe { stream.copy_to_host(copy.as_mut_ptr(), memory.as_ptr(), memory.len()) }?;
        stream.synchronize()?;
        ensure!(digests.get(name) == Some(&digest::of(&copy).to_string()), "the bytes of {name:?} differ");
        Ok(())
    });
    let bytes = tensors.iter().map(|(_, memory)| memory.len()).sum();
    Ok(result("mapped", seconds, bytes, tensors.len(), host, &checked, &Value::Null))
}

fn result(
    entry: &str,
    seconds: f64,
    bytes: u64,
    tensors: usize,
    host_bytes: Option<u64>,
    checked: &Result<()>,
    report: &Value,
) -> Value {
    json!({
        "entry": entry,
        "seconds": seconds,
        "gb_per_s": bytes as f64 / 1e9 / seconds,
        "bytes": bytes,
        "tensors": tensors,
        "ok": checked.is_ok(),
        "detail": checked.as_ref().err().map(ToString::to_string),
        "host_bytes": host_bytes,
        "report": report,
    })
}

/// How far the most memory that this process has had resident exceeds what it had before, in bytes. Mapped files count.
fn grown(before: Option<u64>) -> Option<u64> {
    Some(resident("VmHWM:")?.saturating_sub(before?))
}

/// A figure of this process's memory, in bytes.
fn resident(which: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(which))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}
