//! Loads by cuFile beside cuFile's own sample loop over the same files, byte by byte checked.
//!
//! The sample loop is what cuFile's samples do: as many threads as the load has, each of which reads run after run into a registered buffer of its
//! own, and leaves it there. It runs with each of several lengths of runs, with files opened through the page cache, and cold past it, too. The load
//! brings each byte to its tensor besides. Rounds alternate between all of them, and the ratio printed is that of the load's median to the best
//! loop's: the goal is 1.3 at most.
//!
//! Settings: `BENCH_CHECKPOINT` names the folder of a checkpoint (else one of `BENCH_BYTES`, 1 GB by default, is made), `BENCH_ROUNDS` the number of
//! rounds (5 at least), `BENCH_COLD=1` has files dropped from the page cache before each run.

mod support;

use std::env;
use std::ffi::{c_int, c_void};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libloading::Library;
use rustix::fs::{Advice, OFlags, fadvise};
use tensorhold::allocator::{Fragment, Pool, Request};
use tensorhold::{Backend, BackendKind, Device, Loader, gds_memory};

const REQUIRED: Backend = Backend::Require(BackendKind::Gds);

/// Lengths of the runs that the loop reads, in MiB.
const RUNS: [u64; 5] = [1, 2, 4, 8, 16];

#[derive(Clone, Copy)]
#[repr(C)]
struct Status {
    error: c_int,
    cuda: c_int,
}

#[repr(C)]
struct Descriptor {
    kind: c_int,
    /// In a union with a pointer.
    file: u64,
    operations: *const c_void,
}

/// The three functions that the loop calls.
struct Sample {
    register: unsafe extern "C" fn(*mut *mut c_void, *const Descriptor) -> Status,
    deregister: unsafe extern "C" fn(*mut c_void),
    read: unsafe extern "C" fn(*mut c_void, *mut c_void, usize, i64, i64) -> isize,
}

impl Sample {
    /// Of the library that the loads use, whose driver they have opened.
    fn open(path: &str) -> Self {
        // SAFETY: cuFile's initialisers are made to be run in any process; its header declares the functions so. It stays loaded.
        unsafe {
            let library = Box::leak(Box::new(Library::new(path).unwrap()));
            Self {
                register: *library.get(b"cuFileHandleRegister").unwrap(),
                deregister: *library.get(b"cuFileHandleDeregister").unwrap(),
                read: *library.get(b"cuFileRead").unwrap(),
            }
        }
    }
}

/// A file that is registered.
struct Registered<'a> {
    sample: &'a Sample,
    handle: *mut c_void,
    bytes: u64,
    _file: File,
}

// SAFETY: the library takes handles from any thread.
unsafe impl Sync for Registered<'_> {}

impl<'a> Registered<'a> {
    fn open(sample: &'a Sample, path: &Path, past_cache: bool) -> Option<Self> {
        let flags = if past_cache { OFlags::DIRECT.bits() as i32 } else { 0 };
        let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
        let descriptor = Descriptor { kind: 1, file: file.as_raw_fd() as u64, operations: ptr::null() };
        let mut handle = ptr::null_mut();
        // SAFETY: the structure is as the header declares it; both are valid for the call, and the file is open.
        let status = unsafe { (sample.register)(&mut handle, &descriptor) };
        assert_eq!((status.error, status.cuda), (0, 0), "cuFile does not register {path:?}");
        Some(Self { sample, handle, bytes: file.metadata().unwrap().len(), _file: file })
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        // SAFETY: registered by `open`, and no read is under way.
        unsafe { (self.sample.deregister)(self.handle) };
    }
}

/// Reads all of the files, in runs of so many bytes, each thread into its own buffer. With `check`, each run is compared with the file.
fn sample_loop(
    files: &[Registered<'_>],
    buffers: &[Fragment],
    run: u64,
    device: &Device,
    check: Option<&[PathBuf]>,
) {
    let runs: Vec<(usize, u64)> = files
        .iter()
        .enumerate()
        .flat_map(|(number, file)| (0..file.bytes.div_ceil(run)).map(move |at| (number, at * run)))
        .collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for buffer in buffers {
            let (runs, next) = (&runs, &next);
            scope.spawn(move || {
                let _current = device.make_current().unwrap();
                while let Some(&(number, at)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (file, base) = (&files[number], buffer.as_ptr().cast_mut().cast());
                    // SAFETY: the buffer is this thread's, and at least as long as a run.
                    let read = unsafe { (file.sample.read)(file.handle, base, run as usize, at as i64, 0) };
                    assert_eq!(read as u64, run.min(file.bytes - at), "cuFileRead at {at}");
                    if let Some(paths) = check {
                        compare(device, buffer, read as usize, &paths[number], at);
                    }
                }
            });
        }
    });
}

/// What was read is what the file holds there.
fn compare(device: &Device, buffer: &Fragment, bytes: usize, path: &Path, at: u64) {
    let (mut got, mut expected) = (vec![0_u8; bytes], vec![0_u8; bytes]);
    let stream = device.driver().stream().unwrap();
    // SAFETY: both are as long, and stay until the copy has ended below.
    unsafe { stream.copy_to_host(got.as_mut_ptr(), buffer.as_ptr(), bytes as u64) }.unwrap();
    stream.synchronize().unwrap();
    File::open(path).unwrap().read_exact_at(&mut expected, at).unwrap();
    assert!(got == expected, "cuFileRead of {path:?} at {at}");
}

/// Reads a file into the page cache.
fn read_through(path: &Path) {
    let (mut file, mut buffer) = (File::open(path).unwrap(), vec![0; 4 << 20]);
    while file.read(&mut buffer).unwrap() > 0 {}
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The files of the checkpoint that is named, or of one that is made.
fn files(made: &Path) -> Vec<PathBuf> {
    let folder = env::var_os("BENCH_CHECKPOINT").map(PathBuf::from).unwrap_or_else(|| {
        let shards = support::shapes::llama(number("BENCH_BYTES", 1_000_000_000));
        support::write::write(&shards, 1, |name| Ok(File::create_new(made.join(name))?), |_| ()).unwrap();
        made.into()
    });
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    files.iter().for_each(|path| File::open(path).unwrap().sync_all().unwrap());
    files
}

fn main() {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(error) => return println!("skipped: {error}"),
    };
    if let Err(error) = gds_memory(&device) {
        return println!("skipped: {error}");
    }
    // Beside the programs, as what was built is: the temporary directory may be in memory.
    let made = tempfile::tempdir_in(".").unwrap();
    let files = files(made.path());
    let cold = number("BENCH_COLD", 0) == 1;
    let prepare = || {
        if cold {
            let drop =
                |path: &PathBuf| fadvise(File::open(path).unwrap(), 0, None, Advice::DontNeed).unwrap();
            files.iter().for_each(drop);
        }
    };
    let load = || {
        let started = Instant::now();
        let weights = Loader::new(device.clone()).files(&files).backend(REQUIRED).load().unwrap();
        (started.elapsed(), weights)
    };
    files.iter().for_each(|path| read_through(path));
    let (_, weights) = load();
    support::check::holds_its_files(&weights);
    let report = weights.report().clone();
    weights.close();
    let library = report.choices.iter().find(|choice| choice.about == "cufile").unwrap();
    let (version, path) = library.picked.split_once(" at ").unwrap();
    println!("{version}, {}; {} bytes, {} threads", library.why, report.bytes, report.threads);

    let sample = Sample::open(path);
    let pool = Pool::builder(gds_memory(&device).unwrap()).build().unwrap();
    let buffers: Vec<Fragment> =
        (0..report.threads).map(|_| pool.place("run", Request::new(RUNS[4] << 20, 4096)).unwrap()).collect();
    let opened: Vec<(&str, Vec<Registered<'_>>)> = [("past the cache", true), ("through it", false)]
        .into_iter()
        .filter(|&(_, past)| cold || !past)
        .filter_map(|(name, past)| {
            let files = files.iter().map(|path| Registered::open(&sample, path, past)).collect::<Option<_>>();
            Some((name, files?))
        })
        .collect();
    for (_, registered) in &opened {
        sample_loop(registered, &buffers, RUNS[2] << 20, &device, Some(&files));
    }
    let mut loads = Vec::new();
    let mut loops: Vec<Vec<Duration>> = vec![Vec::new(); opened.len() * RUNS.len()];
    for _ in 0..number("BENCH_ROUNDS", 5).max(5) {
        prepare();
        let (time, weights) = load();
        loads.push(time);
        weights.close();
        for (way, (_, registered)) in opened.iter().enumerate() {
            for (length, run) in RUNS.into_iter().enumerate() {
                prepare();
                let started = Instant::now();
                sample_loop(registered, &buffers, run << 20, &device, None);
                loops[way * RUNS.len() + length].push(started.elapsed());
            }
        }
    }
    let bytes: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let rate = |time: Duration| bytes as f64 / 1e9 / time.as_secs_f64();
    let load = median(loads);
    let loops: Vec<Duration> = loops.into_iter().map(median).collect();
    for (index, &time) in loops.iter().enumerate() {
        let (way, run) = (opened[index / RUNS.len()].0, RUNS[index % RUNS.len()]);
        println!("sample loop {way}, {run} MiB: {:.4} s, {:.2} GB/s", time.as_secs_f64(), rate(time));
    }
    let state = if cold { "cold" } else { "warm" };
    let best = loops.into_iter().min().unwrap();
    println!(
        "{device} {state}: load by cuFile {:.4} s, {:.2} GB/s | best sample loop {:.4} s, {:.2} GB/s | the load takes {:.3} times as long",
        load.as_secs_f64(),
        rate(load),
        best.as_secs_f64(),
        rate(best),
        load.as_secs_f64() / best.as_secs_f64()
    );
    println!("where the time of one load went: {:?}", report.times);
}
