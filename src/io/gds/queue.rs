//! One read at a time.

use std::io;
use std::sync::Arc;

use super::library::RawHandle;
use super::status::read_result;
use super::{CuFile, Handle};
use crate::io::{Completion, Queue, Read, address, too_many};

/// A read has ended when `submit` returns.
pub(super) struct Single {
    cufile: Arc<CuFile>,
    ended: Option<Completion>,
}

impl Single {
    pub(super) fn new(cufile: Arc<CuFile>) -> Self {
        Self { cufile, ended: None }
    }
}

impl Queue for Single {
    fn depth(&self) -> usize {
        1
    }

    unsafe fn submit(&mut self, read: Read<'_, '_>) -> io::Result<()> {
        let (start, bytes) = one_buffer(&read)?;
        let handle = Handle::of(read.file)?;
        // SAFETY: passed on; the file has a lease (D2).
        let result = unsafe { read_all(&self.cufile, handle, (start, bytes), read.offset) };
        self.ended = Some(Completion { ticket: read.ticket, result });
        Ok(())
    }

    fn complete(&mut self) -> io::Result<Completion> {
        self.ended.take().ok_or_else(|| io::Error::other("no read is in flight"))
    }
}

/// Where a read's only buffer is.
pub(super) fn one_buffer(read: &Read<'_, '_>) -> io::Result<(*mut u8, usize)> {
    match (read.buffers.first(), read.buffers.len()) {
        (Some(buffer), 1) => Ok(address(buffer)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "cuFile reads into one buffer")),
    }
}

/// Reads until the buffer is full, or the file ends: cuFile may stop short where it goes through the CPU.
///
/// # Safety
/// As [`Queue::submit`], but for the buffer's bytes having values. The handle is that of a file with a lease.
pub(super) unsafe fn read_all(
    cufile: &CuFile,
    handle: RawHandle,
    (start, bytes): (*mut u8, usize),
    offset: u64,
) -> io::Result<usize> {
    if cufile.is_of_parent() {
        return Err(io::Error::other(
            "cuFile's driver was opened by the process that this one was forked from",
        ));
    }
    if cufile.is_lost() {
        return Err(io::Error::other(
            "cuFile is left alone: it did not say whether an earlier read has ended",
        ));
    }
    let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let place = cufile.place(start);
    let mut done = 0;
    while done < bytes {
        let moved = done as libc::off_t;
        // SAFETY: D1, D2; the caller keeps the buffer until this returns, and lets no one else touch it.
        let returned = unsafe {
            (cufile.table().read)(handle, place.base, bytes - done, at + moved, place.offset + moved)
        };
        match read_result(returned, io::Error::last_os_error) {
            Ok(0) => break,
            Ok(more) if more > bytes - done => return Err(too_many(more, bytes - done)),
            Ok(more) => done += more,
            // What has been read is told first; whoever reads on meets the error again.
            Err(_) if done > 0 && done.is_multiple_of(super::BLOCK_BYTES as usize) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
