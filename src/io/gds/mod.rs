//! GPUDirect Storage: cuFile brings bytes from a file into the memory of a CUDA device, past the CPU where the machine can.
//!
//! cuFile moves whole blocks straight from a disk only where the offset in the file, the length and the address are multiples
//! of 4 KiB. Tensors lie in files wherever those before them end. So reads take whole blocks into *scratch*, device memory that is
//! registered with cuFile, and a copy within the device moves each byte once to its place, at the speed of the device's memory,
//! where cuFile would take the same way through buffers of its own, a mebibyte at a time. So only the scratch is ever
//! registered, and tensors lie in whatever memory their pool has.
//!
//! # Invariants
//! - **D1** Holding a [`CuFile`] proves that the library is loaded for good, has every function of its table, and that its driver is
//!   open. It is never closed: others in the process may use it.
//! - **D2** A file's [`Handle`] is attached to its open descriptor, which has a lease during each read. The descriptor cache drops the handle, which
//!   deregisters it, before it closes the descriptor. So there are no more handles than descriptors, and none outlives its file.
//! - **D3** A region of [`Registered`] memory is registered from before the first read into it until after the last has ended.
//! - **D4** Where the library fails to say whether a read has ended, it may still be writing: no registered memory is released or
//!   used again from then on, and no more is read.

mod batch;
mod direct;
#[cfg(test)]
pub(crate) mod fake;
mod library;
mod log;
mod memory;
#[cfg(test)]
mod on_a_gpu;
mod open;
mod queue;
mod status;
#[cfg(test)]
mod tests;

use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use rustix::fs::OFlags;

pub(crate) use direct::Mode;
pub(crate) use library::CuFile;
pub(crate) use memory::Registered;
pub use memory::gds_memory;
pub(crate) use status::is_from_library;

use self::library::{Descriptor, RawHandle};
use super::descriptor_cache::Attachment;
use super::residency::Probe;
use super::{Access, Engine, FileSource, OpenFile, Queue, WhenFull};
use crate::device::{Device, DeviceKind};
use crate::error::{Error, Remedy};

/// What cuFile wants offsets, lengths and addresses to be multiples of.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// Finds cuFile for a load, or says what is missing.
pub(crate) trait Provider: Send + Sync + fmt::Debug {
    /// # Errors
    /// When there is none that can be used.
    fn open(&self) -> Result<Arc<CuFile>, Missing>;

    /// Whether it reads into this device's memory.
    fn serves(&self, device: &Device) -> bool;

    /// Whether it may read directly on this machine: found out without loading it.
    fn is_likely(&self) -> bool;

    /// Whether it reads a file directly.
    ///
    /// # Errors
    /// When it does not, with the reason.
    fn check_directness(&self, cufile: &CuFile, file: &FileSource) -> io::Result<()> {
        direct::check_file(cufile, file)
    }

    /// The engine that reads by it.
    fn engine(&self, cufile: &Arc<CuFile>) -> Arc<dyn Engine> {
        Arc::new(Gds::new(Arc::clone(cufile)))
    }
}

/// The machine's cuFile.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct System;

impl Provider for System {
    fn open(&self) -> Result<Arc<CuFile>, Missing> {
        open::of_the_process()
    }

    fn serves(&self, device: &Device) -> bool {
        matches!(device.kind(), DeviceKind::Cuda(_)) && !device.is_host_accessible()
    }

    fn is_likely(&self) -> bool {
        direct::is_likely()
    }
}

/// Why there is no cuFile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// What was looked for and what was found.
    pub(crate) detail: String,
    /// What to do about it.
    pub(crate) remedy: Remedy,
}

impl Missing {
    fn new(detail: impl Into<String>, remedy: impl Into<Remedy>) -> Self {
        Self { detail: detail.into(), remedy: remedy.into() }
    }

    /// The error for a backend that was required.
    pub(crate) fn into_error(self) -> Error {
        Error::Option {
            option: "backend",
            got: format!("gds, but {}", self.detail),
            expected: "a cuFile that can be used".into(),
            remedy: self.remedy,
        }
    }
}

/// cuFile as an engine.
#[derive(Debug)]
pub(crate) struct Gds {
    cufile: Arc<CuFile>,
}

/// A registered file (D2).
#[derive(Debug)]
struct Handle {
    raw: RawHandle,
    file: Arc<File>,
    cufile: Arc<CuFile>,
}

// SAFETY: a handle is a name that the library takes from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above, from several at once too.
unsafe impl Sync for Handle {}

impl Gds {
    pub(crate) fn new(cufile: Arc<CuFile>) -> Self {
        Self { cufile }
    }

    /// Opens a file with these flags, and registers it.
    fn open_with(&self, file: &FileSource, flags: OFlags, when_full: WhenFull) -> io::Result<Access> {
        let cufile = Arc::clone(&self.cufile);
        let attach = move |file: &Arc<File>| -> io::Result<Attachment> {
            Ok(Box::new(Handle::register(&cufile, file)?))
        };
        let file = file.with_flags(flags, Some(Box::new(attach)));
        file.lease(when_full)?;
        Ok(Access { file, alignment: BLOCK_BYTES })
    }
}

impl Engine for Gds {
    /// Opens the file past the page cache, as the direct way wants it; in compatibility mode, where the bytes come through the CPU anyway, a
    /// file that is cached is read from there.
    fn open(&self, file: &FileSource, when_full: WhenFull) -> io::Result<Access> {
        let open = |flags| self.open_with(file, flags, when_full);
        let cached = || {
            let open = file.cached().lease(when_full)?;
            Ok::<_, io::Error>(Probe::default().samples(open.file(), file.len()))
        };
        match self.cufile.mode() {
            Mode::Compatible if cached()? => open(OFlags::empty()),
            Mode::Compatible => match open(OFlags::DIRECT) {
                // The file system refuses, and not cuFile.
                Err(error) if error.raw_os_error().is_some() => open(OFlags::empty()),
                opened => opened,
            },
            _ => open(OFlags::DIRECT),
        }
    }

    /// One read at a time, or a batch of many.
    fn queue(&self, depth: usize) -> io::Result<Box<dyn Queue>> {
        if self.cufile.is_lost() {
            return Err(io::Error::other("cuFile did not say whether an earlier read has ended"));
        }
        match depth {
            0 | 1 => Ok(Box::new(queue::Single::new(Arc::clone(&self.cufile)))),
            depth => Ok(Box::new(batch::Batches::new(Arc::clone(&self.cufile), depth)?)),
        }
    }
}

impl Handle {
    fn register(cufile: &Arc<CuFile>, file: &Arc<File>) -> io::Result<Self> {
        let descriptor = Descriptor::of(file.as_raw_fd());
        let mut raw: RawHandle = ptr::null_mut();
        // SAFETY: D1; both are valid for the call, which keeps neither, and the file is open.
        let status = unsafe { (cufile.table().handle_register)(&raw mut raw, &raw const descriptor) };
        status.check("register the file").map_err(|error| {
            let advice = match error.is_no_file() {
                true => {
                    "; cuFile knows file systems by udev's database, which a container sees when /run/udev is mounted in it"
                }
                false => "",
            };
            io::Error::new(io::ErrorKind::Unsupported, format!("{error}{advice}"))
        })?;
        Ok(Self { raw, file: Arc::clone(file), cufile: Arc::clone(cufile) })
    }

    /// The name by which the library knows an open file.
    fn of(file: &OpenFile) -> io::Result<RawHandle> {
        let handle = file.attachment::<Self>().map(|handle| handle.raw);
        handle.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the file is not registered"))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // D4: a read of it may be under way. In a forked child it is registered by the parent. The file stays open.
        if self.cufile.is_lost() || self.cufile.is_of_parent() {
            mem::forget(Arc::clone(&self.file));
            return;
        }
        // SAFETY: D1, D2: registered by `register`; every lease of the file has been returned, so its reads have ended.
        unsafe { (self.cufile.table().handle_deregister)(self.raw) };
    }
}

/// A part of memory, as cuFile takes it: the region that is registered, and an offset in it; an address that is in none is its own base.
#[derive(Debug, Clone, Copy)]
struct Place {
    base: *mut c_void,
    offset: libc::off_t,
}
