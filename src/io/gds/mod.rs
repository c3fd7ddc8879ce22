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
//! - **D2** A file's handle is registered from before the first read of the file until after the last has ended, and the
//!   file is open for as long.
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

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::{Arc, RwLock};

use rustix::fs::OFlags;

pub(crate) use direct::Mode;
pub(crate) use library::CuFile;
pub(crate) use memory::Registered;
pub use memory::gds_memory;
pub(crate) use status::is_from_library;

use self::library::{Descriptor, RawHandle};
use super::residency::Probe;
use super::{Access, Engine, FileSource, Queue};
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

/// cuFile as an engine. Files that it opened are known to it until it goes.
#[derive(Debug)]
pub(crate) struct Gds {
    files: Arc<Files>,
}

/// The files of an engine, by the number of the open file.
#[derive(Debug)]
struct Files {
    cufile: Arc<CuFile>,
    handles: RwLock<HashMap<RawFd, Handle>>,
}

/// A registered file (D2).
#[derive(Debug)]
struct Handle {
    raw: RawHandle,
    access: Access,
}

// SAFETY: a handle is a name that the library takes from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above, from several at once too.
unsafe impl Sync for Handle {}

impl Gds {
    pub(crate) fn new(cufile: Arc<CuFile>) -> Self {
        Self { files: Arc::new(Files { cufile, handles: RwLock::default() }) }
    }
}

impl Engine for Gds {
    /// Registers the file. It is opened past the page cache, as the direct way wants it; in compatibility mode, where the
    /// bytes come through the CPU anyway, a file that is cached is read from there.
    fn open(&self, file: &FileSource) -> io::Result<Access> {
        let cufile = &self.files.cufile;
        let cached = || Probe::default().samples(file.file(), file.len());
        let plain = || file.reopen(OFlags::empty());
        let open = match cufile.mode() {
            Mode::Compatible if cached() => plain()?,
            Mode::Compatible => file.reopen(OFlags::DIRECT).or_else(|_| plain())?,
            _ => file.reopen(OFlags::DIRECT)?,
        };
        let access = Access { file: Arc::new(open), alignment: BLOCK_BYTES };
        let number = access.file.as_raw_fd();
        let descriptor = Descriptor::of(number);
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
        // The file stays open for as long as the handle (D2), so no other has its number.
        self.files.write().insert(number, Handle { raw, access: access.clone() });
        Ok(access)
    }

    /// One read at a time, or a batch of many.
    fn queue(&self, depth: usize) -> io::Result<Box<dyn Queue>> {
        if self.files.cufile.is_lost() {
            return Err(io::Error::other("cuFile did not say whether an earlier read has ended"));
        }
        match depth {
            0 | 1 => Ok(Box::new(queue::Single::new(Arc::clone(&self.files)))),
            depth => Ok(Box::new(batch::Batches::new(Arc::clone(&self.files), depth)?)),
        }
    }
}

impl Files {
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<RawFd, Handle>> {
        self.handles.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The handle of a file that was opened by this engine.
    fn handle(&self, file: RawFd) -> io::Result<RawHandle> {
        let handles = self.handles.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let handle = handles.get(&file).map(|handle| handle.raw);
        handle.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the file is not registered"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // D4: a read of one of them may be under way. In a forked child they are registered by the parent.
        let lost = self.cufile.is_lost() || self.cufile.is_of_parent();
        let handles = self.handles.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (_, handle) in handles.drain() {
            if lost {
                std::mem::forget(handle.access);
                continue;
            }
            // SAFETY: D1, D2: registered by `open`; every queue, which would keep this, has gone, and its reads have ended.
            unsafe { (self.cufile.table().handle_deregister)(handle.raw) };
        }
    }
}

/// A part of memory, as cuFile takes it: the region that is registered, and an offset in it; an address that is in none is its own base.
#[derive(Debug, Clone, Copy)]
struct Place {
    base: *mut c_void,
    offset: libc::off_t,
}
