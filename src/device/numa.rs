//! NUMA: which node of the machine a PCI device hangs on, and memory that is placed there.
//!
//! A device copies best from memory of its own node: from another's, bytes cross the link between the processors, which
//! others use too. Where only one node has memory, or the kernel does not say where the device is, there is no [`Node`]
//! and nothing is done. Placement is a preference: a node that is full and a kernel that refuses fail nothing.
//!
//! # Invariant
//! - **N1** A policy decides where a range's pages come from when it gets them, never what they hold or who may touch them.
//!   So setting one is no access to memory, whatever the range.

use std::ffi::c_ulong;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

/// Where the kernel tells of devices and nodes.
const SYSFS: &str = "/sys";

/// As many as a kernel can be built for. The numbers of nodes are below it.
const MAX_NODES: u32 = 1024;

/// One bit for each node, as the kernel lays them out.
type NodeMask = [c_ulong; (MAX_NODES / c_ulong::BITS) as usize];

/// How long the kernel is told that a [`NodeMask`] is: it takes one bit off.
const MASK_BITS: c_ulong = MAX_NODES as c_ulong + 1;

/// The node that a device hangs on, of a machine where several have memory.
#[derive(Debug)]
pub(super) struct Node {
    number: u32,
    /// The kernel has refused to place memory there, and is not asked again.
    refused: AtomicBool,
}

impl Node {
    /// The node of the PCI device with this address, such as `0000:1b:00.0`, if there is a choice and it has memory.
    pub(super) fn of_device(address: &str) -> Option<Self> {
        Self::find(Path::new(SYSFS), address)
    }

    /// The node with this number, which has memory.
    pub(super) fn numbered(number: u32) -> Self {
        Self { number, refused: AtomicBool::new(false) }
    }

    /// Whether there is such a node, and it has memory.
    pub(super) fn exists(number: u32) -> bool {
        let nodes = read(&Path::new(SYSFS).join("devices/system/node/has_memory"));
        nodes.and_then(|nodes| parse_list(&nodes)).is_some_and(|nodes| nodes.contains(&number))
    }

    fn find(sysfs: &Path, address: &str) -> Option<Self> {
        let nodes = parse_list(&read(&sysfs.join("devices/system/node/has_memory"))?)?;
        if nodes.len() < 2 {
            return None;
        }
        // -1 where the firmware does not say.
        let number = parse_node(&read(&sysfs.join("bus/pci/devices").join(address).join("numa_node"))?)?;
        nodes.contains(&number).then_some(Self { number, refused: AtomicBool::new(false) })
    }

    /// Its number, unless the kernel has refused to place memory there.
    pub(super) fn number(&self) -> Option<u32> {
        (!self.refused.load(Ordering::Relaxed)).then_some(self.number)
    }

    /// Has the pages of a range that is still untouched come from this node, or from others when it has none left.
    pub(super) fn prefer(&self, start: NonNull<u8>, bytes: u64) {
        let Some(node) = self.number() else { return };
        if let Err(error) = set_preferred(node, start, bytes) {
            tracing::debug!(%error, node, "memory is not placed near the device");
            self.refused.store(true, Ordering::Relaxed);
        }
    }
}

/// `mbind(2)`: without the right to (`EPERM`, in containers), with a node that the process may not use (`EINVAL`), or in a
/// kernel that knows no nodes (`ENOSYS`), it is refused.
fn set_preferred(node: u32, start: NonNull<u8>, bytes: u64) -> io::Result<()> {
    let mut mask = NodeMask::default();
    if let Some(word) = mask.get_mut((node / c_ulong::BITS) as usize) {
        *word = 1 << (node % c_ulong::BITS);
    }
    let (start, bytes, mode, flags) =
        (start.as_ptr(), bytes as usize, libc::MPOL_PREFERRED as c_ulong, 0_usize);
    // SAFETY: N1; the kernel reads MAX_NODES bits of the mask, which has as many, and does not keep it.
    let status =
        unsafe { libc::syscall(libc::SYS_mbind, start, bytes, mode, mask.as_ptr(), MASK_BITS, flags) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// A list of nodes as the kernel writes it: `0-1,3`.
fn parse_list(list: &str) -> Option<Vec<u32>> {
    let mut nodes = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        nodes.extend(parse_node(first)?..=parse_node(last)?);
    }
    Some(nodes)
}

fn parse_node(number: &str) -> Option<u32> {
    number.trim().parse().ok().filter(|&node| node < MAX_NODES)
}

#[cfg(test)]
mod tests {
    use tensorhold_allocator::{HostMemory, Memory};

    use super::*;

    const DEVICE: &str = "0000:1b:00.0";

    /// What [`Node::find`] says of a device in a tree with these two files.
    fn find(has_memory: &str, numa_node: &str) -> Option<u32> {
        let sysfs = tempfile::tempdir().unwrap();
        let nodes = sysfs.path().join("devices/system/node");
        let device = sysfs.path().join("bus/pci/devices").join(DEVICE);
        fs::create_dir_all(&nodes).unwrap();
        fs::create_dir_all(&device).unwrap();
        fs::write(nodes.join("has_memory"), has_memory).unwrap();
        fs::write(device.join("numa_node"), numa_node).unwrap();
        assert!(Node::find(sysfs.path(), "0000:1c:00.0").is_none(), "there is no such device");
        Node::find(sysfs.path(), DEVICE).and_then(|node| node.number())
    }

    #[test]
    fn lists_of_nodes_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0\n"), Some(vec![0]));
        assert_eq!(parse_list("0-1,3\n"), Some(vec![0, 1, 3]));
        assert_eq!(parse_list("2,4-6,1023"), Some(vec![2, 4, 5, 6, 1023]));
        for list in ["", "\n", ",", "0,", "-1", "0-", "0-x", "0x1", "0 1", "0-1-2", "1024", "0-4294967295"] {
            assert_eq!(parse_list(list), None, "{list:?}");
        }
    }

    #[test]
    fn a_device_is_found_on_its_node_where_several_have_memory() {
        assert_eq!(find("0-1\n", "0\n"), Some(0));
        assert_eq!(find("0-1\n", "1\n"), Some(1));
        assert_eq!(find("0,8\n", "8\n"), Some(8));
    }

    #[test]
    fn one_node_with_memory_leaves_no_choice() {
        assert_eq!(find("0\n", "0\n"), None);
        assert_eq!(find("1\n", "0\n"), None);
    }

    #[test]
    fn a_node_without_memory_is_not_picked() {
        assert_eq!(find("0-1\n", "2\n"), None);
    }

    #[test]
    fn a_device_whose_node_is_not_known_has_none() {
        for unknown in ["-1\n", "", "\n", "near", "1024\n", "4294967297\n", "0-1\n"] {
            assert_eq!(find("0-1\n", unknown), None, "{unknown:?}");
        }
        for garbled in ["", "all\n", "1-0\n"] {
            assert_eq!(find(garbled, "0\n"), None, "{garbled:?}");
        }
        assert!(Node::find(Path::new("/there/is/no/such/folder"), DEVICE).is_none());
    }

    /// The policy of the page at `address`: its mode, and the nodes below 64.
    fn policy(address: *const u8) -> (i32, u64) {
        const MPOL_F_ADDR: c_ulong = 1 << 1;
        let (mut mode, mut mask) = (-1_i32, NodeMask::default());
        // SAFETY: `mode` and the mask are valid for the writes; the address is only looked up.
        let status = unsafe {
            let mask = mask.as_mut_ptr();
            libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, mask, MASK_BITS, address, MPOL_F_ADDR)
        };
        assert_eq!(status, 0, "{}", io::Error::last_os_error());
        (mode, mask[0])
    }

    #[test]
    fn a_range_prefers_the_node_and_what_is_beside_it_does_not() {
        const HALF: u64 = 2 << 20;
        let region = HostMemory::new().reserve(2 * HALF, 1).unwrap();
        match set_preferred(0, region.base, HALF) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                println!("skipped: this system lets no one place memory: {error}");
            }
            placed => {
                placed.unwrap();
                let at = |offset: u64| policy(region.base.as_ptr().wrapping_add(offset as usize));
                assert_eq!((at(0), at(HALF - 1)), ((libc::MPOL_PREFERRED, 1), (libc::MPOL_PREFERRED, 1)));
                assert_eq!(at(HALF), (libc::MPOL_DEFAULT, 0));
            }
        }
        // SAFETY: reserved above, and not used since.
        unsafe { HostMemory::new().release(region) }.unwrap();
    }

    #[test]
    fn a_refusal_fails_nothing_and_is_remembered() {
        let node = Node { number: MAX_NODES - 1, refused: AtomicBool::new(false) };
        assert_eq!(node.number(), Some(MAX_NODES - 1));
        let region = HostMemory::new().reserve(4096, 1).unwrap();
        node.prefer(region.base, region.bytes);
        assert_eq!(node.number(), None);
        node.prefer(region.base, region.bytes);
        // SAFETY: reserved above, and not used since.
        unsafe { HostMemory::new().release(region) }.unwrap();
    }
}
