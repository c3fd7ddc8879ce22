//! What the tests of targets share: users, folders, nodes, saves and what they left.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use rustix::fs::{
    CWD, FileType, IFlags, Mode, XattrFlags, ioctl_getflags, ioctl_setflags, makedev, mknodat, setxattr,
};
use tempfile::TempDir;
use tensorhold::save::{Draft, Entry, Item, PlanOptions, Saved, Saver, plan_shards};
use tensorhold::{DType, Device, Error, Loader};

use crate::support::fork::in_child;
use crate::support::{Spec, assert_holds, bytes_tensor};

/// A user, and a group, that owns nothing.
pub(crate) const NOBODY: u32 = 65534;

pub(crate) fn is_root() -> bool {
    // SAFETY: asks for a number.
    unsafe { libc::geteuid() == 0 }
}

/// Does `work` in a child of another user, who is in these groups.
pub(crate) fn as_nobody(groups: &[libc::gid_t], work: impl FnOnce()) {
    in_child(|| {
        // SAFETY: the child has one thread; the groups are there. It ends without going back.
        let left = unsafe {
            libc::setgroups(groups.len(), groups.as_ptr()) == 0
                && libc::setresgid(NOBODY, NOBODY, NOBODY) == 0
                && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0
        };
        assert!(left && !is_root());
        work();
    });
}

/// A folder that everyone may use.
pub(crate) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    folder
}

pub(crate) fn has_nodes() -> bool {
    let folder = folder();
    make_node(&folder.path().join("node"), FileType::CharacterDevice)
}

pub(crate) fn has_lists() -> bool {
    let folder = folder();
    setxattr(folder.path(), "system.posix_acl_default", &list(0o4), XattrFlags::empty()).is_ok()
}

/// Whether this user may make files append-only, on a file system that knows that.
pub(crate) fn has_attributes() -> bool {
    let folder = folder();
    let open = fs::File::open(folder.path()).unwrap();
    let Ok(flags) = ioctl_getflags(&open) else { return false };
    let can = ioctl_setflags(&open, flags | IFlags::APPEND).is_ok();
    let _ = ioctl_setflags(&open, flags);
    can
}

pub(crate) fn has_namespaces() -> bool {
    is_root()
        && Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success())
}

/// Does `work` in a child whose mounts no one else sees.
pub(crate) fn with_own_mounts(work: impl FnOnce()) {
    in_child(|| {
        // SAFETY: the child has one thread, and asks for numbers.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        mount(None, Path::new("/"), libc::MS_REC | libc::MS_PRIVATE);
        work();
    });
}

pub(crate) fn mount(from: Option<&Path>, to: &Path, flags: libc::c_ulong) {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (from, to) = (from.map(text), text(to));
    let from = from.as_ref().map_or(ptr::null(), |from| from.as_ptr());
    // SAFETY: the texts end in NUL, and stay until the call returns.
    let mounted = unsafe { libc::mount(from, to.as_ptr(), ptr::null(), flags, ptr::null()) };
    assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
}

/// A node of a device that takes and gives nothing of worth.
pub(crate) fn make_node(path: &Path, kind: FileType) -> bool {
    let device = if kind == FileType::BlockDevice { makedev(7, 200) } else { makedev(1, 3) };
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device).is_ok()
}

pub(crate) fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
}

pub(crate) fn spec() -> Spec {
    bytes_tensor("t", 100)
}

pub(crate) fn save_to(path: impl Into<PathBuf>) -> Result<Saved, Error> {
    Saver::new().threads(1).save_file(path, [item(&spec())])
}

pub(crate) fn item(spec: &Spec) -> Item<'_> {
    Item::bytes(Entry::new(&spec.name, DType::U8, &spec.shape).unwrap(), &spec.bytes).unwrap()
}

/// A set of three files and an index.
pub(crate) fn save_set(base: &Path) -> Result<Saved, Error> {
    let specs = [bytes_tensor("a", 10), bytes_tensor("b", 20), bytes_tensor("c", 30)];
    Saver::new().shards(3).index().threads(1).save(base, specs.iter().map(item))
}

pub(crate) fn draft(paths: &[PathBuf]) -> Result<Draft, Error> {
    let entries: Vec<Entry> =
        (0..paths.len()).map(|n| Entry::new(format!("t{n}"), DType::U8, &[10]).unwrap()).collect();
    Draft::create(plan_shards(&entries, paths, &PlanOptions::new()).unwrap(), 0)
}

pub(crate) fn assert_saved(path: &Path) {
    assert_holds(&Loader::new(Device::host()).files([path]).load().unwrap(), &[spec()]);
}

#[track_caller]
pub(crate) fn assert_refused<T>(result: Result<T, Error>, words: &str) {
    let Err(error) = result else { panic!("it was saved, expected an error of {words:?}") };
    let message = error.to_string();
    assert!(matches!(error, Error::Target { .. }) && message.contains(words), "{message}");
    assert!(message.contains(';') || message.contains("expected"), "{message}");
}

/// All that is in a folder: kinds, identities, modes, contents and links.
pub(crate) fn contents(folder: &Path) -> BTreeMap<PathBuf, (u64, u32, u64, Vec<u8>)> {
    let about = |entry: fs::DirEntry| {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        let held = match metadata.file_type() {
            kind if kind.is_file() => fs::read(&path).unwrap_or_default(),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        (path, (metadata.ino(), metadata.mode(), metadata.rdev(), held))
    };
    fs::read_dir(folder).unwrap().map(|entry| about(entry.unwrap())).collect()
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A directory, a FIFO and a socket, with what they are called in errors.
pub(crate) fn other_files(folder: &Path) -> Vec<(PathBuf, &'static str)> {
    let [directory, fifo, socket] = ["directory", "fifo", "socket"].map(|name| folder.join(name));
    fs::create_dir(&directory).unwrap();
    make_fifo(&fifo);
    drop(UnixListener::bind(&socket).unwrap());
    vec![(directory, "a directory"), (fifo, "a FIFO"), (socket, "a socket")]
}

/// An access control list: its owner and a user of number 1234 may do something, others may not.
pub(crate) fn list(user: u16) -> Vec<u8> {
    const NO_ONE: u32 = u32::MAX;
    let entries =
        [(0x01, 0o6, NO_ONE), (0x02, user, 1234), (0x04, 0, NO_ONE), (0x10, user, NO_ONE), (0x20, 0, NO_ONE)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, may, who) in entries {
        bytes.extend([&u16::to_le_bytes(tag)[..], &u16::to_le_bytes(may), &u32::to_le_bytes(who)].concat());
    }
    bytes
}
