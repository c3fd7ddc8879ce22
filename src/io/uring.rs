//! Reads past the page cache by `io_uring`: one thread keeps many in flight.
//!
//! # Invariants
//! - **U1** The kernel knows a buffer only between the submission of a read and its completion (and, if the buffer was
//!   registered, until the ring is closed, but then it only writes where reads tell it to). The drop takes every
//!   completion before the ring closes, also where the system fails to wait for them.
//!   A forked child has no mapping of the ring, and the reads in flight are its parent's: its drop does nothing.
//! - **U2** A file that was registered stays open until the ring closes, so its number stands for no other file.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;

use io_uring::{IoUring, opcode, types};
use tensorhold_allocator::Process;

use super::{Access, Completion, Direct, Engine, FileSource, Queue, Read};

/// `io_uring` over files opened for direct reads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Uring;

/// More files than this are read without having been registered.
const MAX_FILES: u32 = 256;

/// Deeper queues gain nothing on disks and take locked memory.
const MAX_DEPTH: usize = 128;

impl Engine for Uring {
    fn open(&self, file: &FileSource) -> io::Result<Access> {
        Direct.open(file)
    }

    fn queue(&self, depth: usize) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(Ring::open(depth)?))
    }
}

struct Ring {
    /// Closed by the drop, and not in a forked child.
    ring: ManuallyDrop<IoUring>,
    process: Process,
    depth: usize,
    in_flight: usize,
    /// Whether buffers can be registered.
    registers: bool,
    /// By ticket: whether its buffer is registered.
    prepared: Vec<bool>,
    /// The files that are registered, by their place; `None` where none can be.
    files: Option<Vec<RawFd>>,
}

impl Ring {
    fn open(depth: usize) -> io::Result<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let mut builder = IoUring::builder();
        // A forked child shall not share the ring.
        builder.dontfork();
        let ring = ManuallyDrop::new(builder.build(depth as u32)?);
        let buffers = ring.submitter().register_buffers_sparse(depth as u32);
        if let Err(error) = &buffers {
            // Kernels before 5.19, or no locked memory left: reads work without.
            tracing::debug!(%error, "io_uring registers no buffers");
        }
        let (registers, prepared) = (buffers.is_ok(), vec![false; depth]);
        let files = ring.submitter().register_files_sparse(MAX_FILES).is_ok().then(Vec::new);
        let process = Process::current();
        Ok(Self { ring, process, depth, in_flight: 0, registers, prepared, files })
    }

    /// The place of a registered file; registers it, if it can.
    fn registered(&mut self, file: RawFd) -> Option<types::Fixed> {
        let files = self.files.as_mut()?;
        if let Some(place) = files.iter().position(|&known| known == file) {
            return Some(types::Fixed(place as u32));
        }
        let place = files.len() as u32;
        if place >= MAX_FILES {
            return None;
        }
        match self.ring.submitter().register_files_update(place, &[file]) {
            Ok(1) => files.push(file),
            _ => {
                self.files = None;
                return None;
            }
        }
        Some(types::Fixed(place))
    }

    /// Takes a completion that is there.
    fn take(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        let result = match entry.result() {
            code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
            bytes => Ok(bytes as usize),
        };
        Some(Completion { ticket: entry.user_data() as usize, result })
    }
}

impl Queue for Ring {
    fn depth(&self) -> usize {
        self.depth
    }

    unsafe fn prepare(&mut self, ticket: usize, start: *mut u8, bytes: usize) {
        if !self.registers || ticket >= self.depth {
            return;
        }
        let buffer = libc::iovec { iov_base: start.cast(), iov_len: bytes };
        // SAFETY: U1; the caller keeps the buffer until the queue, and with it the ring, is dropped.
        match unsafe { self.ring.submitter().register_buffers_update(ticket as u32, &[buffer], None) } {
            Ok(()) => self.prepared[ticket] = true,
            Err(error) => {
                tracing::debug!(%error, "io_uring registers no more buffers: locked memory is limited");
                self.registers = false;
            }
        }
    }

    unsafe fn submit(&mut self, read: Read<'_, '_>) -> io::Result<()> {
        let [buffer] = read.buffers else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a ring reads into one buffer"));
        };
        let (start, bytes) = (buffer.as_mut_ptr(), u32::try_from(buffer.len()).unwrap_or(!4095));
        let fixed = self.prepared.get(read.ticket).copied().unwrap_or(false).then_some(read.ticket as u16);
        let number = read.file.as_raw_fd();
        let entry = match (self.registered(number), fixed) {
            (Some(file), Some(slot)) => {
                opcode::ReadFixed::new(file, start, bytes, slot).offset(read.offset).build()
            }
            (Some(file), None) => opcode::Read::new(file, start, bytes).offset(read.offset).build(),
            (None, Some(slot)) => {
                opcode::ReadFixed::new(types::Fd(number), start, bytes, slot).offset(read.offset).build()
            }
            (None, None) => opcode::Read::new(types::Fd(number), start, bytes).offset(read.offset).build(),
        };
        // SAFETY: the caller keeps the buffer until the completion is taken or the queue is dropped (U1).
        if unsafe { self.ring.submission().push(&entry.user_data(read.ticket as u64)) }.is_err() {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "the ring is full"));
        }
        // From here on the kernel may have the read, whatever `submit` says: the drop waits for it.
        self.in_flight += 1;
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of something for now: what is queued goes with the next call.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn complete(&mut self) -> io::Result<Completion> {
        loop {
            if let Some(completion) = self.take() {
                return Ok(completion);
            }
            if self.in_flight == 0 {
                return Err(io::Error::other("no read is in flight"));
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Ring {
    /// Takes every completion (U1).
    fn drain(&mut self) {
        while self.in_flight > 0 {
            if let Err(error) = self.complete() {
                tracing::error!(%error, reads = self.in_flight, "io_uring refuses to wait for its reads");
                // What it has not taken never begins. The rest ends without a call, too; closing the ring would not wait for that (U1).
                let waiting = self.ring.submission().len();
                while self.in_flight > waiting {
                    if self.take().is_none() {
                        thread::yield_now();
                    }
                }
                return;
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.process.is_current() {
            self.drain();
            // SAFETY: dropped once, here, and not used after it.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::sync::mpsc::{self, RecvTimeoutError};
    use std::time::Duration;

    use super::*;
    use crate::io::buffer_at;
    use crate::loader::in_child;

    #[test]
    fn a_forked_child_leaves_the_ring_and_its_reads_to_its_parent() {
        let Ok(ring) = Ring::open(2) else { return };
        let (reader, mut writer) = io::pipe().unwrap();
        let mut bytes = [0_u8; 4];
        // SAFETY: the buffer stays until the queue has been dropped, and no one else touches it.
        let buffers = &mut [unsafe { buffer_at(bytes.as_mut_ptr(), bytes.len()) }];
        let mut queue = Some(ring);
        let read = Read { ticket: 0, file: reader.as_fd(), offset: 0, buffers, cached_only: false };
        // SAFETY: as above; the file is closed after the queue.
        unsafe { queue.as_mut().unwrap().submit(read) }.unwrap();
        in_child(|| drop(queue.take()));
        writer.write_all(b"late").unwrap();
        let completion = queue.as_mut().unwrap().complete().unwrap();
        assert_eq!(completion.result.unwrap(), 4);
        drop(queue);
        assert_eq!(&bytes, b"late");
    }

    #[test]
    fn a_ring_that_fails_waits_for_its_reads_all_the_same() {
        let Ok(mut queue) = Ring::open(2) else { return };
        let (reader, mut writer) = io::pipe().unwrap();
        let mut bytes = [0_u8; 4];
        // SAFETY: the buffer stays until the queue has been dropped, and no one else touches it.
        let buffers = &mut [unsafe { buffer_at(bytes.as_mut_ptr(), bytes.len()) }];
        let read = Read { ticket: 0, file: reader.as_fd(), offset: 0, buffers, cached_only: false };
        // SAFETY: as above; the file is closed after the queue.
        unsafe { queue.submit(read) }.unwrap();
        let other = File::open("/dev/null").unwrap();
        // SAFETY: both numbers are open; the ring's now stands for a file that is no ring.
        assert!(unsafe { libc::dup2(other.as_raw_fd(), queue.ring.as_raw_fd()) } >= 0);
        let (sender, dropped) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                drop(queue);
                sender.send(()).unwrap();
            });
            assert_eq!(dropped.recv_timeout(Duration::from_millis(100)), Err(RecvTimeoutError::Timeout));
            writer.write_all(b"late").unwrap();
            dropped.recv().unwrap();
        });
        assert_eq!(&bytes, b"late");
    }
}
