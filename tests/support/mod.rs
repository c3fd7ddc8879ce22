//! What the integration tests share: checkpoints to load, and a device whose memory the CPU is told not to touch.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

pub mod changed;
pub mod device;
pub mod folders;
pub mod fork;
pub mod staged_host;
pub mod threads;
pub mod versions;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tensorhold::allocator::{Pool, Stats};
use tensorhold::{Device, Weights};

/// A tensor to write: name, dtype as the format spells it, shape, bytes.
#[derive(Debug, Clone)]
pub struct Spec {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A tensor of `length` bytes (as U8) whose bytes depend on its name and on their positions.
pub fn bytes_tensor(name: &str, length: usize) -> Spec {
    tensor(name, "U8", &[length], length)
}

/// A tensor of `nbytes` bytes that depend on its name and on their positions.
pub fn tensor(name: &str, dtype: &'static str, shape: &[usize], nbytes: usize) -> Spec {
    let mut state = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let bytes = (0..nbytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    Spec { name: name.into(), dtype, shape: shape.to_vec(), bytes }
}

/// The header of a file with these tensors, one after the other.
pub fn header(tensors: &[Spec]) -> String {
    let mut offset = 0;
    let mut entries = Vec::new();
    for tensor in tensors {
        let end = offset + tensor.bytes.len();
        let (name, dtype, shape) = (&tensor.name, tensor.dtype, &tensor.shape);
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{offset},{end}]}}"#
        ));
        offset = end;
    }
    format!("{{{}}}", entries.join(","))
}

/// A file's bytes: length, header, data.
pub fn file_bytes(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Writes a file with these tensors.
pub fn write(path: &Path, tensors: &[Spec]) {
    let data: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes.iter().copied()).collect();
    fs::write(path, file_bytes(&header(tensors), &data)).unwrap();
}

/// A folder with one file, `model.safetensors`, and its path.
pub fn single(tensors: &[Spec]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, tensors);
    (folder, path)
}

/// The same on a disk, written back, so that it can be read past the page cache.
pub fn on_disk(tensors: &[Spec]) -> (TempDir, PathBuf) {
    // The temporary directory may be in memory.
    let disk = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
    fs::create_dir_all(disk).unwrap();
    let folder = tempfile::tempdir_in(disk).unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, tensors);
    fs::File::open(&path).unwrap().sync_all().unwrap();
    (folder, path)
}

/// Drops a part of a file, which has been written back, from the page cache; all from `offset` on if `bytes` is 0.
pub fn drop_cached(path: &Path, offset: u64, bytes: u64) {
    let file = fs::File::open(path).unwrap();
    rustix::fs::fadvise(&file, offset, std::num::NonZeroU64::new(bytes), rustix::fs::Advice::DontNeed)
        .unwrap();
}

/// The start of a file, kept in the page cache as far as the limit on locked memory lets it.
pub struct Kept {
    start: *mut std::ffi::c_void,
    bytes: usize,
}

impl Kept {
    /// Brings the first `bytes` bytes of a file into the page cache, where they stay until this is dropped.
    pub fn new(path: &Path, bytes: usize) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mlock, mmap};
        let file = fs::File::open(path).unwrap();
        // SAFETY: a new mapping, which no one reads or writes, of a file that is longer.
        unsafe {
            let start =
                mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap();
            // Without it the pages are as likely to stay as those of any file.
            let _ = mlock(start, bytes);
            Self { start, bytes }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, which no one refers to.
        let _ = unsafe { rustix::mm::munmap(self.start, self.bytes) };
    }
}

/// Every tensor of `weights` is one of `tensors`, and the other way round, byte by byte.
pub fn assert_holds(weights: &Weights, tensors: &[Spec]) {
    assert_eq!(weights.len(), tensors.len());
    for tensor in tensors {
        let view = weights.view(&tensor.name).unwrap();
        assert_eq!(view.shape(), tensor.shape, "{}", tensor.name);
        assert_eq!(view.dtype().to_string(), tensor.dtype, "{}", tensor.name);
        assert_eq!(view.nbytes(), tensor.bytes.len() as u64, "{}", tensor.name);
        assert!(
            view.nbytes() == 0 || (view.as_ptr() as usize).is_multiple_of(256),
            "{} is not aligned",
            tensor.name
        );
        assert!(view.to_host().unwrap() == tensor.bytes, "the bytes of {} differ", tensor.name);
    }
}

/// The devices that the tests of loading run on here: one that is read in place, one that is staged.
pub fn devices() -> [Device; 2] {
    [Device::host(), staged_host::device()]
}

/// A pool over the device's memory.
pub fn pool_for(device: &Device) -> Pool {
    Pool::builder(device.memory()).build().unwrap()
}

/// The pool is as it was when it was made, high water aside.
pub fn assert_all_back(pool: &Pool) {
    pool.trim();
    let stats = pool.stats();
    let Stats { reserved_bytes, live_bytes, free_bytes, fragments, regions, lost_bytes, .. } = stats;
    let all_zero =
        (reserved_bytes, live_bytes, free_bytes, fragments, regions, lost_bytes) == (0, 0, 0, 0, 0, 0);
    assert!(all_zero, "{stats:?}");
}
