//! How much memory there is at all.
//!
//! Linux hands out addresses for more memory than there is, by default for somewhat more and with `vm.overcommit_memory` 1 for any amount, and ends a
//! process that then touches it: a request that can never be met has to be refused before.

use std::fs;
use std::path::Path;

use rustix::system::sysinfo;

/// Bytes of memory that all processes here can have together: what is built in and swap space, or less where a container has a limit.
/// Both can change while a process runs.
pub(crate) fn memory_bytes() -> u64 {
    let system = sysinfo();
    let unit = u64::from(system.mem_unit);
    let [memory, swap] = [system.totalram, system.totalswap].map(|units| units.saturating_mul(unit));
    memory.min(container_bytes(Path::new("/sys/fs/cgroup"))).saturating_add(swap)
}

/// The limit of the container that the process is in (cgroup v2's `memory.max`, v1's `memory.limit_in_bytes`), or the largest number.
fn container_bytes(cgroup: &Path) -> u64 {
    let limit = |file: &str| fs::read_to_string(cgroup.join(file)).ok()?.trim().parse::<u64>().ok();
    let limits = ["memory.max", "memory/memory.limit_in_bytes"].into_iter().filter_map(limit);
    limits.min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_have_limits_of_either_version_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        assert_eq!(container_bytes(folder.path()), u64::MAX);
        write("memory.max", "max\n");
        assert_eq!(container_bytes(folder.path()), u64::MAX);
        write("memory.max", "1073741824\n");
        assert_eq!(container_bytes(folder.path()), 1 << 30);
        fs::create_dir(folder.path().join("memory")).unwrap();
        write("memory/memory.limit_in_bytes", "536870912\n");
        assert_eq!(container_bytes(folder.path()), 1 << 29);
    }

    #[test]
    fn a_machine_has_some_memory_and_no_exabyte() {
        assert!((16 << 20..1 << 60).contains(&memory_bytes()));
    }
}
