//! How large the demo's checkpoint is, if no one says: it should show the machine's speed and be done soon.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use tensorhold::allocator::{Bytes, HostMemory, Pool, Request};
use tensorhold::{Device, DeviceKind, save};

/// At most: enough to see a fast bus at work, or a minute's work for a slow disk.
const MAX_BYTES_CUDA: u64 = 16_000_000_000;
const MAX_BYTES: u64 = 1_000_000_000;

/// Less shows little.
const MIN_BYTES: u64 = 64_000_000;

/// What suits the device, and takes no more than a quarter of the memory and of the disk that are free; half of them, where a quarter is less than
/// [`MIN_BYTES`].
pub(crate) fn suitable(device: &Device, folder: &Path) -> anyhow::Result<u64> {
    let on_cuda = matches!(device.kind(), DeviceKind::Cuda(_));
    let most = if on_cuda { MAX_BYTES_CUDA } else { MAX_BYTES };
    let mut bytes = limited(most, available_memory(), free_disk(folder));
    // Device memory does not overcommit, so trying is asking.
    while on_cuda && bytes > MIN_BYTES && !has_room(device, bytes)? {
        bytes /= 2;
    }
    Ok(bytes)
}

/// Fails before anything is written if the disk cannot take it.
pub(crate) fn check_disk(folder: &Path, bytes: u64) -> anyhow::Result<()> {
    let Some(free) = free_disk(folder) else { return Ok(()) };
    let (needed, has) = (Bytes(bytes).beside(&[free]), Bytes(free).beside(&[bytes]));
    ensure!(
        bytes < free,
        "write to {folder:?}: {needed} needed, {has} free; lower --bytes or name another --dir"
    );
    Ok(())
}

fn limited(most: u64, memory: Option<u64>, disk: Option<u64>) -> u64 {
    let free = [memory, disk].into_iter().flatten().min().unwrap_or(u64::MAX);
    // A process that takes more than its control group has is ended, so even the least has to fit.
    most.min(free / 4).max(MIN_BYTES.min(free / 2))
}

/// Whether the device has a range for a checkpoint of that size, and something to spare.
fn has_room(device: &Device, bytes: u64) -> anyhow::Result<bool> {
    let pool = Pool::builder(device.memory()).name("the demo's probe").build()?;
    let found = pool.place("probe", Request::new(bytes + bytes / 8, 256)).is_ok();
    pool.close();
    Ok(found)
}

/// Memory that programs can have, in bytes: what the system counts as available, at most the limit of the control groups.
fn available_memory() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_meminfo(&text));
    [system, Some(HostMemory::limit_bytes())].into_iter().flatten().min()
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Bytes that may still be written to the file system of a folder; `None` where that is not known.
fn free_disk(folder: &Path) -> Option<u64> {
    save::free_space(folder).ok().flatten()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{MAX_BYTES, MIN_BYTES, check_disk, limited, parse_meminfo};

    #[test]
    fn a_quarter_of_what_is_short_is_taken() {
        let gigabyte = 1_000_000_000;
        assert_eq!(limited(MAX_BYTES, Some(64 * gigabyte), Some(100 * gigabyte)), MAX_BYTES);
        assert_eq!(limited(MAX_BYTES, Some(2 * gigabyte), Some(100 * gigabyte)), gigabyte / 2);
        assert_eq!(limited(MAX_BYTES, Some(2 * gigabyte), Some(gigabyte)), gigabyte / 4);
        assert_eq!(limited(MAX_BYTES, Some(MIN_BYTES * 3), None), MIN_BYTES);
        assert_eq!(limited(MAX_BYTES, Some(64 << 20), None), 32 << 20);
        assert_eq!(limited(MAX_BYTES, Some(gigabyte), Some(MIN_BYTES)), MIN_BYTES / 2);
        assert_eq!(limited(MAX_BYTES, None, None), MAX_BYTES);
    }

    #[test]
    fn meminfo_is_in_kibibytes() {
        assert_eq!(parse_meminfo("MemTotal: 9 kB\nMemAvailable:   24 kB\n"), Some(24 << 10));
        assert_eq!(parse_meminfo("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn a_checkpoint_larger_than_the_disk_is_refused() {
        let error = check_disk(Path::new("/"), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("--bytes"), "{error}");
        check_disk(Path::new("/"), 0).unwrap();
    }
}
