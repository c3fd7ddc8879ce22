//! How much memory there is at all.
//!
//! Linux hands out addresses for more memory than there is, by default for somewhat more and with `vm.overcommit_memory` 1 for any amount, and ends a
//! process that then touches it: a request that can never be met has to be refused before.

use std::path::Path;

use rustix::system::sysinfo;

use crate::cgroup;

/// Bytes of memory that all processes here can have together: what is built in and swap space, or less where the process is in a
/// control group with a limit, or in one below such. Both can change while a process runs.
pub(crate) fn memory_bytes() -> u64 {
    let system = sysinfo();
    let unit = u64::from(system.mem_unit);
    let [memory, swap] = [system.totalram, system.totalswap].map(|units| units.saturating_mul(unit));
    memory.saturating_add(swap).min(cgroup::memory_bytes(Path::new("/"), swap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_some_memory_and_no_exabyte() {
        assert!((16 << 20..1 << 60).contains(&memory_bytes()));
    }
}
