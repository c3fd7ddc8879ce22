//! Whether cuFile reads directly here, or through the CPU.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::OFlags;

use super::library::{CuFile, Properties};
use crate::io::{FileSource, FileSystem};
use crate::{regular, settings};

/// How cuFile reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Through the CPU, as anyone can: what it does where it cannot do better.
    Compatible,
    /// Directly, by the kernel module nvidia-fs.
    NvidiaFs,
    /// Directly, by the kernel's own transfers between PCI devices.
    P2pDma,
}

/// Bits of [`Properties::storage`], which say what is read directly.
mod bit {
    pub(super) const LUSTRE: u32 = 0;
    pub(super) const NFS: u32 = 2;
    pub(super) const GPFS: u32 = 3;
    pub(super) const NVME: u32 = 4;
    pub(super) const NVME_OF: u32 = 5;
    pub(super) const BEEGFS: u32 = 9;
    pub(super) const NVME_P2P: u32 = 11;
}

impl Mode {
    pub(super) fn of(properties: &Properties) -> Self {
        let says = |bit: u32| properties.storage & 1 << bit != 0;
        match properties {
            _ if says(bit::NVME_P2P) => Self::P2pDma,
            Properties { major: 1.., .. } if properties.storage != 0 => Self::NvidiaFs,
            _ => Self::Compatible,
        }
    }

    /// For reports.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Compatible => "in compatibility mode, through the CPU",
            Self::NvidiaFs => "directly, by nvidia-fs",
            Self::P2pDma => "directly, by the kernel's P2PDMA",
        }
    }
}

/// Whether cuFile may read directly on this machine: a look at a few files, which loads nothing. It is so with nvidia-fs loaded, or with
/// cuFile told to use the kernel's own transfers.
pub(super) fn is_likely() -> bool {
    Path::new("/proc/driver/nvidia-fs/version").exists() || is_p2p_configured(&settings::cufile_config())
}

/// No more is read of a configuration.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Whether a configuration of cuFile's asks for the kernel's own transfers. The file is JSON with comments.
fn is_p2p_configured(config: &Path) -> bool {
    let mut text = String::new();
    let read = regular::open(config, OFlags::empty()).map_err(io::Error::from);
    if read.and_then(|(file, _)| file.take(MAX_CONFIG_BYTES).read_to_string(&mut text)).is_err() {
        return false;
    }
    text.lines().any(|line| {
        let line = line.split("//").next().unwrap_or_default();
        let value = line.split_once("\"use_pci_p2pdma\"").map(|(_, value)| value.trim_start());
        value
            .and_then(|value| value.strip_prefix(':'))
            .is_some_and(|value| value.trim_start().starts_with("true"))
    })
}

/// Whether cuFile, as it is on this machine, reads a file directly; with an error that says why not.
pub(super) fn check_file(cufile: &CuFile, file: &FileSource) -> io::Result<()> {
    let unsupported = |detail: String| Err(io::Error::new(io::ErrorKind::Unsupported, detail));
    if cufile.mode() == Mode::Compatible {
        return unsupported(format!("{} reads {}", cufile.describe(), Mode::Compatible.describe()));
    }
    let says = |bits: &[u32]| bits.iter().any(|bit| cufile.storage() & 1 << bit != 0);
    let (known, direct) = match file.file_system() {
        FileSystem::EXT4 | FileSystem::XFS => {
            let device = file.device();
            let disk = says(&[bit::NVME, bit::NVME_OF, bit::NVME_P2P]) && is_nvme(Path::new("/sys"), device);
            ("ext4 or xfs on NVMe", disk)
        }
        FileSystem::NFS => ("NFS", says(&[bit::NFS])),
        FileSystem::LUSTRE => ("Lustre", says(&[bit::LUSTRE])),
        FileSystem::GPFS => ("GPFS", says(&[bit::GPFS])),
        FileSystem::BEEGFS => ("BeeGFS", says(&[bit::BEEGFS])),
        other => {
            return unsupported(format!("{other} is none that cuFile reads directly"));
        }
    };
    match direct {
        true => Ok(()),
        false => unsupported(format!(
            "cuFile does not read it directly, as it would {known} that is set up for it"
        )),
    }
}

/// Whether a block device is an NVMe disk, a part of one, or made of such.
fn is_nvme(sysfs: &Path, device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = sysfs.join(format!("dev/block/{major}:{minor}"));
    let Ok(path) = fs::canonicalize(block) else { return false };
    let below: Vec<_> = fs::read_dir(path.join("slaves")).into_iter().flatten().flatten().collect();
    if below.is_empty() {
        return path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("nvme"));
    }
    below.iter().all(|disk| disk.file_name().to_string_lossy().starts_with("nvme"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_with_comments_says_whether_transfers_between_devices_are_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cufile.json");
        let says = |text: &str| {
            fs::write(&path, text).unwrap();
            is_p2p_configured(&path)
        };
        assert!(says("{ // a comment\n \"properties\": {\n  \"use_pci_p2pdma\" : true,\n } }"));
        assert!(!says("{\"properties\": {\"use_pci_p2pdma\": false}}"));
        assert!(!says("{\"properties\": {\n// \"use_pci_p2pdma\": true\n}}"));
        assert!(!says("") && !is_p2p_configured(&folder.path().join("none")));
    }

    #[test]
    fn the_mode_is_what_the_driver_says_of_storage() {
        let mode = |major, storage| Mode::of(&Properties { major, storage, ..Properties::default() });
        assert_eq!((mode(0, 0), mode(2, 0)), (Mode::Compatible, Mode::Compatible));
        assert_eq!((mode(2, 1 << bit::NVME), mode(0, 1 << bit::NVME_P2P)), (Mode::NvidiaFs, Mode::P2pDma));
    }

    #[test]
    fn a_disk_is_nvme_when_it_or_all_that_it_is_made_of_are() {
        let sysfs = tempfile::tempdir().unwrap();
        let disk = |device: &str, path: &str, slaves: &[&str]| {
            let path = sysfs.path().join("devices").join(path);
            fs::create_dir_all(path.join("slaves")).unwrap();
            slaves.iter().for_each(|slave| fs::create_dir(path.join("slaves").join(slave)).unwrap());
            fs::create_dir_all(sysfs.path().join("dev/block")).unwrap();
            std::os::unix::fs::symlink(path, sysfs.path().join("dev/block").join(device)).unwrap();
        };
        disk("259:1", "pci/nvme/nvme0/nvme0n1/nvme0n1p1", &[]);
        disk("254:0", "virtio/block/vda", &[]);
        disk("9:0", "virtual/block/md0", &["nvme1n1", "nvme2n1"]);
        disk("9:1", "virtual/block/md1", &["nvme1n1", "sda"]);
        let nvme = |major, minor| is_nvme(sysfs.path(), rustix::fs::makedev(major, minor));
        assert_eq!(
            [nvme(259, 1), nvme(254, 0), nvme(9, 0), nvme(9, 1), nvme(8, 0)],
            [true, false, true, false, false]
        );
    }
}
