//! How much memory hostile headers and indexes take, by an allocator that counts.
//!
//! In a program of its own, with one test: all of the process's memory is counted.

#[path = "support/hostile.rs"]
mod hostile;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use hostile::Hostile;
use tensorhold::{Device, Loader};

/// Counts the bytes that are allocated, and the most that were.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does all the work, and is handed what the caller promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
    // What grows is allocated, copied and freed, so that both count at once.
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes for each byte of a header that may be allocated at the most, in addition to what is returned.
const LIMIT: usize = 8;

/// How long the headers are. Slow code reads short ones.
const BYTES: usize = if cfg!(debug_assertions) { 800_000 } else { 8_000_000 };

/// Bytes of any load, whatever its headers: threads, options, buffers.
const FIXED: usize = 256 << 10;

/// Reads the header by `read`. Returns the most bytes that were allocated meanwhile, without those that what it returned has.
fn extra<T>(read: impl FnOnce() -> T) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let returned = read();
    let (peak, after) = (PEAK.load(Ordering::Relaxed), LIVE.load(Ordering::Relaxed));
    drop(returned);
    peak - before - after.saturating_sub(before)
}

fn check(path: &Path, hostile: &Hostile) -> Vec<String> {
    fs::write(path, hostile.file()).unwrap();
    let loader = || Loader::new(Device::host()).files([path]);
    let ways = [
        ("inspect", extra(|| loader().inspect().map_err(|error| error.to_string()))),
        ("open", extra(|| loader().open().map_err(|error| error.to_string()))),
        ("load", extra(|| loader().load().map_err(|error| error.to_string()))),
    ];
    let bytes = hostile.header.len();
    let over = |(_, extra): &(&str, usize)| *extra > LIMIT * bytes + FIXED + hostile.data;
    let told = |(way, extra): (&str, usize)| {
        let times = extra as f64 / bytes as f64;
        format!("{way} of {bytes} bytes of {}: {extra} bytes, {times:.1} times as many", hostile.what)
    };
    ways.into_iter().filter(|way| std::env::var_os("SHOW_ALL").is_some() || over(way)).map(told).collect()
}

#[test]
fn headers_take_at_most_eight_times_their_length_beyond_what_is_returned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut over = Vec::new();
    for headers in [hostile::right(BYTES), hostile::wrong(BYTES / 2)] {
        for hostile in &headers {
            over.extend(check(&path, hostile));
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}
