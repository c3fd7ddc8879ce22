//! Loading a Llama-shaped checkpoint from the page cache, beside the machine's own limit, byte by byte checked.
//!
//! Each device has two figures from the same run: `load`, from the call of `load` to all tensors being usable, and a
//! limit. On the host the limit is a plain parallel read of the same files into equally fresh memory; on a CUDA
//! device it is one copy of as many bytes from pinned memory. Rounds alternate between the two, and the ratio printed is
//! that of the medians.
//!
//! Settings: `BENCH_CHECKPOINT` names the folder of a checkpoint (else one of `BENCH_BYTES`, 1 GB by default, is made),
//! `BENCH_ROUNDS` the number of rounds (5 at least).

mod support;

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput};
use tensorhold::{Device, Loader, Weights};
use tensorhold_allocator::{HostMemory, Pool, Request};

/// A checkpoint and what it holds.
struct Checkpoint {
    files: Vec<PathBuf>,
    bytes: u64,
    /// Removed at the end, if it was made here.
    _made: Option<tempfile::TempDir>,
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn checkpoint() -> Checkpoint {
    let made = env::var_os("BENCH_CHECKPOINT").is_none().then(|| {
        let folder = tempfile::tempdir().unwrap();
        let shards = support::shapes::llama(number("BENCH_BYTES", 1_000_000_000));
        support::write::write(&shards, 1, |name| Ok(File::create_new(folder.path().join(name))?), |_| ())
            .unwrap();
        folder
    });
    let folder = made
        .as_ref()
        .map_or_else(|| env::var_os("BENCH_CHECKPOINT").unwrap().into(), |made| made.path().to_owned());
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    let inspection = Loader::new(Device::host()).files(&files).inspect().unwrap();
    Checkpoint { files, bytes: inspection.tensors.iter().map(|tensor| tensor.nbytes).sum(), _made: made }
}

fn load(device: &Device, checkpoint: &Checkpoint) -> (Duration, Weights) {
    let started = Instant::now();
    let weights = Loader::new(device.clone()).files(&checkpoint.files).load().unwrap();
    (started.elapsed(), weights)
}

/// Reads all files into one fresh region with one thread a core, in runs of 4 MiB.
fn plain_read(checkpoint: &Checkpoint) -> Duration {
    const RUN: u64 = 4 << 20;
    let started = Instant::now();
    let files: Vec<(File, u64)> = checkpoint
        .files
        .iter()
        .map(|path| {
            File::open(path)
                .map(|file| (file.metadata().unwrap().len(), file))
                .map(|(length, file)| (file, length))
                .unwrap()
        })
        .collect();
    let total = files.iter().map(|(_, length)| length).sum();
    let pool = Pool::new(HostMemory::new()).unwrap();
    let mut region = pool.place("plain read", Request::new(total, 4096)).unwrap();
    let mut runs = Vec::new();
    let mut rest = region.as_bytes_mut().unwrap();
    for (file, length) in &files {
        let mut at = 0;
        while at < *length {
            let (run, behind) = std::mem::take(&mut rest).split_at_mut(RUN.min(length - at) as usize);
            rest = behind;
            at += run.len() as u64;
            runs.push(std::sync::Mutex::new((file, at - run.len() as u64, run)));
        }
    }
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from).min(16) {
            scope.spawn(|| {
                while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (file, at, run) = &mut *run.lock().unwrap();
                    file.read_exact_at(run, *at).unwrap();
                }
            });
        }
    });
    let time = started.elapsed();
    drop(runs);
    drop(region);
    // The memory is gone before the next measurement begins, as `close` sees to for a load.
    pool.trim();
    time
}

/// Copies as many bytes from pinned memory to the device, 64 MiB at a time.
fn pinned_copy(device: &Device, bytes: u64) -> Duration {
    const RUN: u64 = 64 << 20;
    let place = |memory, size| {
        Pool::builder(memory).build().unwrap().place("copy", Request::new(size, 4096)).unwrap()
    };
    let (from, to) = (place(device.staging_memory(), RUN), place(device.memory(), bytes));
    let stream = device.driver().stream().unwrap();
    let started = Instant::now();
    let mut done = 0;
    while done < bytes {
        let run = RUN.min(bytes - done);
        // SAFETY: both fragments outlive the synchronization, and nothing else touches them.
        unsafe {
            stream.copy_to_device(to.as_ptr().cast_mut().wrapping_add(done as usize), from.as_ptr(), run)
        }
        .unwrap();
        done += run;
    }
    stream.synchronize().unwrap();
    started.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Alternates load and limit, and prints their medians and the ratio.
fn compare(device: &Device, checkpoint: &Checkpoint) {
    let on_host = device.is_host_accessible();
    let limit = || if on_host { plain_read(checkpoint) } else { pinned_copy(device, checkpoint.bytes) };
    let (_, weights) = load(device, checkpoint);
    support::check::holds_its_files(&weights);
    let report = weights.report().clone();
    weights.close();
    limit();
    let (mut loads, mut limits) = (Vec::new(), Vec::new());
    for _ in 0..number("BENCH_ROUNDS", 7).max(5) {
        limits.push(limit());
        let (time, weights) = load(device, checkpoint);
        loads.push(time);
        weights.close();
    }
    let (load_time, limit_time) = (median(loads), median(limits));
    let rate = |time: Duration| checkpoint.bytes as f64 / 1e9 / time.as_secs_f64();
    let name = if on_host { "plain parallel read" } else { "pinned copy" };
    println!(
        "{device}: {} tensors, {} bytes in {} files | load {:.4} s, {:.2} GB/s | {name} {:.4} s, {:.2} GB/s | \
         ratio {:.3} | threads {}, staging {} bytes, regions {} bytes ({:.5} of the tensors)",
        report.tensors,
        checkpoint.bytes,
        checkpoint.files.len(),
        load_time.as_secs_f64(),
        rate(load_time),
        limit_time.as_secs_f64(),
        rate(limit_time),
        limit_time.as_secs_f64() / load_time.as_secs_f64(),
        report.threads,
        report.staging_bytes,
        report.region_bytes,
        report.region_bytes as f64 / checkpoint.bytes as f64,
    );
    println!("{device}: where the time of one load went: {:?}", report.times);
}

fn criterion_figures(criterion: &mut Criterion, device: &Device, checkpoint: &Checkpoint) {
    let mut group = criterion.benchmark_group("load");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).throughput(Throughput::Bytes(checkpoint.bytes));
    group.bench_function(device.name(), |b| {
        b.iter_custom(|rounds| {
            (0..rounds)
                .map(|_| {
                    let (time, weights) = load(device, checkpoint);
                    weights.close();
                    time
                })
                .sum()
        });
    });
    group.finish();
}

fn main() {
    let checkpoint = checkpoint();
    let mut devices = vec![Device::host()];
    devices.extend(Device::cuda(0));
    let mut criterion = Criterion::default().configure_from_args();
    for device in &devices {
        compare(device, &checkpoint);
        criterion_figures(&mut criterion, device, &checkpoint);
    }
    criterion.final_summary();
}
