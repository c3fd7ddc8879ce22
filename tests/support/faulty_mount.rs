//! A file system of one file whose reads fail where a test wants them to, behind the kernel's FUSE.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};
use std::{io, mem};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry,
    ReplyOpen, Request, Session,
};
use tempfile::TempDir;

/// The file's name in the mount.
const NAME: &str = "model.safetensors";
const FILE: INodeNo = INodeNo(2);
/// The kernel asks again each time.
const UNCACHED: Duration = Duration::ZERO;

/// What is wrong with reads of the byte at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: u64,
    pub(crate) kind: FaultKind,
    /// How many reads meet it.
    pub(crate) times: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// They fail with this error of the system.
    Errno(i32),
    /// They end before that byte.
    Short,
}

/// How the file system talks to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Reads go past the page cache, whatever the program that opens the file says.
    pub(crate) direct_io: bool,
    /// The kernel sends the parts of a direct read all at once.
    pub(crate) async_dio: bool,
}

#[derive(Debug)]
struct Served {
    bytes: Vec<u8>,
    mode: Mode,
    fault: Mutex<Option<Fault>>,
    /// Reads that met the fault.
    met: AtomicU64,
}

/// A mount of it, which goes when this is dropped.
pub(crate) struct FaultyMount {
    served: Arc<Served>,
    folder: TempDir,
    session: Option<BackgroundSession>,
}

impl FaultyMount {
    /// Mounts a file of these bytes.
    ///
    /// # Errors
    /// Where FUSE is missing or not allowed.
    pub(crate) fn new(bytes: Vec<u8>, mode: Mode) -> io::Result<Self> {
        let served = Arc::new(Served { bytes, mode, fault: Mutex::default(), met: AtomicU64::new(0) });
        let folder = tempfile::tempdir()?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::FSName("tensorhold-test".into())];
        config.n_threads = Some(2);
        let session = Session::new(Faulty(Arc::clone(&served)), folder.path(), &config)?.spawn()?;
        Ok(Self { served, folder, session: Some(session) })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join(NAME)
    }

    /// Reads meet this fault from now on.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        *self.served.fault.lock().unwrap() = fault;
        self.served.met.store(0, Ordering::Relaxed);
    }

    /// How many reads have met the fault.
    pub(crate) fn met(&self) -> u64 {
        self.served.met.load(Ordering::Relaxed)
    }
}

impl Drop for FaultyMount {
    fn drop(&mut self) {
        // Also where a file of it is still open, as after a test that failed.
        detach(self.folder.path());
        // Waiting for its threads would wait for that file.
        mem::forget(self.session.take());
    }
}

fn detach(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends with a zero and is valid for the call.
    let _ = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
}

/// Mounts that this process makes are its own and go with it, however it ends.
///
/// # Errors
/// Where the process may not do that: it then may not mount either.
pub(crate) fn keep_mounts_private() -> io::Result<()> {
    // SAFETY: the calls take no memory but strings that end with a zero.
    let status = unsafe {
        match libc::unshare(libc::CLONE_NEWNS) {
            0 => {
                let flags = libc::MS_REC | libc::MS_PRIVATE;
                let none = std::ptr::null();
                libc::mount(none, c"/".as_ptr(), none, flags, none.cast())
            }
            failed => failed,
        }
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[derive(Debug)]
struct Faulty(Arc<Served>);

impl Faulty {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == FILE;
        let size = if is_file { self.0.bytes.len() as u64 } else { 0 };
        FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Faulty {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.0.mode.async_dio {
            let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == OsStr::new(NAME) {
            true => reply.entry(&UNCACHED, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _file: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&UNCACHED, &self.attributes(inode));
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        reply.opened(FileHandle(0), if self.0.mode.direct_io { direct } else { FopenFlags::empty() });
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _file: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = &self.0.bytes;
        let start = (offset as usize).min(bytes.len());
        let end = (start + size as usize).min(bytes.len());
        let fault = *self.0.fault.lock().unwrap();
        let met = fault.filter(|fault| (start..end).contains(&(fault.at as usize)));
        match met.filter(|fault| self.0.met.fetch_add(1, Ordering::Relaxed) < fault.times) {
            Some(Fault { kind: FaultKind::Errno(errno), .. }) => reply.error(Errno::from_i32(errno)),
            Some(Fault { kind: FaultKind::Short, at, .. }) => reply.data(&bytes[start..at as usize]),
            None => reply.data(&bytes[start..end]),
        }
    }
}
