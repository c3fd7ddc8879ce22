//! The memory of the machine, as far as this process may use it.
//!
//! Linux overcommits: it maps more memory than there is (with `vm.overcommit_memory` 1 any amount), and kills a process that touches
//! too much of it. So a request that can never be met is refused before it is mapped.

use std::path::Path;

use rustix::system::sysinfo;

use super::cgroup;

/// Bytes of memory that all processes can use together: RAM and swap space, or the limit of a control group of this process if that is
/// lower. It can change while a process runs.
pub(crate) fn memory_bytes() -> u64 {
    let system = sysinfo();
    bytes_of(Path::new("/"), system.totalram, system.totalswap, system.mem_unit.into())
}

/// The same for a system that reports these numbers of units of this size, and whose `/proc` is below `root`. Some sandboxes report
/// no memory at all; then only the limits of control groups count.
fn bytes_of(root: &Path, memory: u64, swap: u64, unit: u64) -> u64 {
    // Kernels that count in bytes may leave the unit out.
    let [memory, swap] = [memory, swap].map(|units| units.saturating_mul(unit.max(1)));
    let all = if memory == 0 { u64::MAX } else { memory.saturating_add(swap) };
    all.min(cgroup::memory_bytes(root, swap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_some_memory_and_no_exabyte() {
        assert!((16 << 20..1 << 60).contains(&memory_bytes()));
    }

    #[test]
    fn a_system_that_reports_no_memory_has_an_unknown_amount() {
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(bytes_of(nothing.path(), 0, 0, 4096), u64::MAX);
        assert_eq!(bytes_of(nothing.path(), 0, 0, 0), u64::MAX);
        assert_eq!(bytes_of(nothing.path(), 8 << 30, 1 << 30, 0), 9 << 30);
        assert_eq!(bytes_of(nothing.path(), 8, 1, 4096), 9 * 4096);
    }
}
