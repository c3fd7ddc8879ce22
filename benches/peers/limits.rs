//! What the machine can do: the best of a grid, measured in the same call as the loads.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tensorhold::Device;
use tensorhold::allocator::{Fragment, HostMemory, Memory, Pool, Request};

use super::digest;

const MIB: u64 = 1 << 20;

/// A stretch of a file to read.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    file: usize,
    start: u64,
    bytes: u64,
}

/// Cached files: a pinned copy of as many bytes to the device, and reads of all bytes into little pinned memory and into
/// fresh memory.
pub(crate) fn cached(paths: &[PathBuf], device: &Device) -> Result<Value> {
    let bytes = digest::bytes(paths)?;
    let files: Vec<File> = paths.iter().map(File::open).collect::<io::Result<_>>()?;
    let (copy, copy_bytes) = pinned_copy(device, bytes)?;
    let cores = cores();
    let mut best = (Duration::MAX, 0, 0);
    for threads in [cores - cores / 8, cores, cores + cores / 2] {
        for block in [MIB / 2, MIB, 2 * MIB] {
            let time =
                read(&files, &cut(&files, block, false)?, threads.max(1), device.staging_memory(), block)?;
            best = best.min((time, threads, block));
        }
    }
    // A limit of the host's alone, and slow where fresh memory is.
    let fresh = if device.is_host_accessible() { Some(fresh_read(&files)?) } else { None };
    let rate = |time: Duration| bytes as f64 / 1e9 / time.as_secs_f64();
    Ok(json!({
        "bytes": bytes,
        "pinned_copy_gb_per_s": rate(copy),
        "pinned_copy": format!("copies of {} MiB", copy_bytes / MIB),
        "page_cache_to_pinned_gb_per_s": rate(best.0),
        "page_cache_to_pinned": format!("{} threads, {} KiB", best.1, best.2 >> 10),
        "fresh_read_gb_per_s": fresh.map(rate),
    }))
}

/// Files that are not cached: direct reads of all bytes, or of the second half of each file, the best way that a short
/// trial on the files' beginnings found. The trial's stretches differ, so that no cache of the disk's flatters it.
pub(crate) fn cold(paths: &[PathBuf], half: bool) -> Result<Value> {
    let open =
        |path| File::options().read(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path);
    let files: Vec<File> = paths.iter().map(open).collect::<io::Result<_>>()?;
    let memory = || Arc::new(HostMemory::new()) as Arc<dyn Memory>;
    let mut best = (0.0, 0, 0);
    let mut from = 0;
    for (threads, block) in [(4, MIB), (8, MIB), (16, MIB), (32, MIB), (16, 4 * MIB), (32, 4 * MIB)] {
        let all = cut(&files, block, half)?;
        let trial: Vec<Stretch> =
            all.into_iter().skip((from / block) as usize).take((512 * MIB / block) as usize).collect();
        from += 512 * MIB;
        let bytes: u64 = trial.iter().map(|stretch| stretch.bytes).sum();
        if bytes < 64 * MIB {
            break;
        }
        let rate = bytes as f64 / read(&files, &trial, threads, memory(), block)?.as_secs_f64();
        if rate > best.0 {
            best = (rate, threads, block);
        }
    }
    let (_, threads, block) = if best.1 == 0 { (0.0, 16, MIB) } else { best };
    let all = cut(&files, block, half)?;
    // What the trial has read is in no cache of ours, but may be in the disk's: it is read again all the same.
    let time = read(&files, &all, threads, memory(), block)?;
    let bytes: u64 = all.iter().map(|stretch| stretch.bytes).sum();
    Ok(json!({
        "bytes": bytes,
        "seconds": time.as_secs_f64(),
        "direct_read_gb_per_s": bytes as f64 / 1e9 / time.as_secs_f64(),
        "direct_read": format!("{threads} threads, {} KiB", block >> 10),
    }))
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The files, or the second half of each, in blocks.
fn cut(files: &[File], block: u64, half: bool) -> Result<Vec<Stretch>> {
    let mut stretches = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let length = file.metadata()?.len();
        let first = if half { length / 2 / block * block } else { 0 };
        stretches.extend((first..length).step_by(block as usize).map(|start| Stretch {
            file: index,
            start,
            bytes: block.min(length - start),
        }));
    }
    Ok(stretches)
}

/// Reads all stretches with so many threads, each into one buffer of its own that is there before the clock starts. All buffers
/// are in one piece, so in huge pages where there are some: direct reads into small ones are slower.
fn read(
    files: &[File],
    stretches: &[Stretch],
    threads: usize,
    memory: Arc<dyn Memory>,
    block: u64,
) -> Result<Duration> {
    let pool = Pool::builder(memory).build()?;
    let mut buffers = pool.place("buffers", Request::new(block * threads as u64, 4096))?;
    let buffers = buffers.as_bytes_mut().context("host memory")?;
    buffers.fill(1);
    let (next, started) = (AtomicU64::new(0), Instant::now());
    let work = &|buffer: &mut [u8]| -> Result<()> {
        while let Some(stretch) = stretches.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let mut done = 0;
            // Whole blocks are asked for, as direct reads want it; the last of a file is short.
            while done < stretch.bytes {
                match files[stretch.file].read_at(&mut buffer[done as usize..], stretch.start + done)? {
                    0 => break,
                    bytes => done += bytes as u64,
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let readers: Vec<_> =
            buffers.chunks_mut(block as usize).map(|buffer| scope.spawn(move || work(buffer))).collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
    })?;
    Ok(started.elapsed())
}

/// Reads all files into one fresh region, as large reads as fit its huge pages.
fn fresh_read(files: &[File]) -> Result<Duration> {
    const RUN: u64 = 4 * MIB;
    let started = Instant::now();
    let stretches = cut(files, RUN, false)?;
    let pool = Pool::new(HostMemory::new())?;
    let total = stretches.len() as u64 * RUN;
    let mut region = pool.place("fresh", Request::new(total, 4096))?;
    let runs = region.as_bytes_mut().context("host memory")?.chunks_mut(RUN as usize).zip(&stretches);
    let runs: Vec<_> = runs.map(|run| std::sync::Mutex::new(Some(run))).collect();
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                let Some((memory, stretch)) = run.lock().ok().and_then(|mut run| run.take()) else {
                    continue;
                };
                files[stretch.file].read_exact_at(&mut memory[..stretch.bytes as usize], stretch.start)?;
            }
            Ok(())
        };
        let readers: Vec<_> = (0..cores().min(16)).map(|_| scope.spawn(work)).collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
    })?;
    Ok(started.elapsed())
}

/// Copies so many bytes from pinned memory to the device; the best of several lengths of copies, and that length.
fn pinned_copy(device: &Device, bytes: u64) -> Result<(Duration, u64)> {
    const FROM: u64 = 64 * MIB;
    let place = |memory, size| -> Result<Fragment> {
        Ok(Pool::builder(memory).build()?.place("copy", Request::new(size, 4096))?)
    };
    let (from, to) = (place(device.staging_memory(), FROM)?, place(device.memory(), bytes)?);
    let stream = device.driver().stream()?;
    let mut best = (Duration::MAX, 0);
    for run in [4 * MIB, 16 * MIB, FROM] {
        let started = Instant::now();
        for start in (0..bytes).step_by(run as usize) {
            let target = to.as_ptr().cast_mut().wrapping_add(start as usize);
            // SAFETY: both fragments outlive the synchronization, and nothing else touches them.
            unsafe { stream.copy_to_device(target, from.as_ptr(), run.min(bytes - start)) }?;
        }
        stream.synchronize()?;
        best = best.min((started.elapsed(), run));
    }
    Ok(best)
}
