//! Reads past the page cache by `io_uring`: one thread keeps many in flight.
//!
//! # Invariants
//! - **U1** The kernel knows a buffer only between the submission of a read and its completion (and, if the buffer was
//!   registered, until the ring is closed, but then it only writes where reads tell it to). The drop takes every
//!   completion before the ring closes, also where the system fails to wait for them.
//!   A forked child has no mapping of the ring, and the reads in flight are its parent's: its drop does nothing.
//! - **U2** A registered file is known by the id of its open descriptor, which no other has (F3). The ring keeps the file until it closes, whatever becomes of the
//!   descriptor, whose number may stand for another file by then.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;

use io_uring::{IoUring, opcode, types};
use tensorhold_allocator::Process;

use super::descriptor_cache::DescriptorCache;
use super::retries::Retries;
use super::{Access, Completion, Direct, Engine, FileSource, FileSystem, OpenFile, Queue, Read, WhenFull};

/// `io_uring` over files opened for direct reads, on file systems where it tells the truth.
///
/// When a read ends early, `io_uring` reads the rest by itself and reports the sum. For that it relies on the file system to
/// move the read's position by what was read. Where FUSE reads past the page cache, it does not: the rest is then filled with
/// bytes from the read's start, and a full length reported (seen in Linux 6.18). Nothing in a completion tells. So only file
/// systems are read that are known to move the position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Uring {
    file_system: fn(&FileSource) -> FileSystem,
}

/// Those whose direct reads move the position by what was read: all go through the kernel's `iomap` or its page cache.
const TRUSTED: [FileSystem; 5] =
    [FileSystem::EXT4, FileSystem::XFS, FileSystem::BTRFS, FileSystem::F2FS, FileSystem::TMPFS];

impl Default for Uring {
    fn default() -> Self {
        Self { file_system: FileSource::file_system }
    }
}

impl Uring {
    /// One that takes all files to be on this file system.
    #[cfg(test)]
    pub(crate) fn on(file_system: fn(&FileSource) -> FileSystem) -> Self {
        Self { file_system }
    }
}

/// More files than this are read without having been registered.
const MAX_FILES: u32 = 256;

/// Deeper queues gain nothing on disks and take locked memory.
const MAX_DEPTH: usize = 128;

/// A kernel that is short of something so often in a row will not wait for reads.
const MOST_REFUSALS: u32 = 10_000;

impl Engine for Uring {
    fn open(&self, file: &FileSource, when_full: WhenFull) -> io::Result<Access> {
        self.check_trust(file)?;
        Direct.open(file, when_full)
    }

    fn check_trust(&self, file: &FileSource) -> io::Result<()> {
        let system = (self.file_system)(file);
        if TRUSTED.contains(&system) {
            return Ok(());
        }
        let trusted = TRUSTED.map(|system| system.to_string()).join(", ");
        let problem = format!(
            "it is on {system}, where io_uring may report bytes that it did not read; it is used on {trusted}"
        );
        Err(io::Error::new(io::ErrorKind::Unsupported, problem))
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
    /// Tickets of the reads in flight (U1).
    in_flight: Vec<usize>,
    /// Whether buffers can be registered.
    registers: bool,
    /// By ticket: whether its buffer is registered.
    prepared: Vec<bool>,
    /// The ids of the files that are registered, by their place (U2); `None` where none can be.
    files: Option<Vec<u64>>,
}

impl Ring {
    fn open(depth: usize) -> io::Result<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let mut builder = IoUring::builder();
        // A forked child shall not share the ring.
        builder.dontfork();
        let mut ring = DescriptorCache::of_process().make(|| builder.build(depth as u32))?;
        try_out(&mut ring)?;
        let ring = ManuallyDrop::new(ring);
        let buffers = ring.submitter().register_buffers_sparse(depth as u32);
        if let Err(error) = &buffers {
            // Kernels before 5.19, or no locked memory left: reads work without.
            tracing::debug!(%error, "io_uring registers no buffers");
        }
        let (registers, prepared) = (buffers.is_ok(), vec![false; depth]);
        let files = ring.submitter().register_files_sparse(MAX_FILES).is_ok().then(Vec::new);
        let (in_flight, process) = (Vec::with_capacity(depth), Process::current());
        Ok(Self { ring, process, depth, in_flight, registers, prepared, files })
    }

    /// The place of a registered file; registers it, if it can.
    fn registered(&mut self, file: &OpenFile) -> Option<types::Fixed> {
        let files = self.files.as_mut()?;
        if let Some(place) = files.iter().position(|&known| known == file.id()) {
            return Some(types::Fixed(place as u32));
        }
        let place = files.len() as u32;
        if place >= MAX_FILES {
            return None;
        }
        match self.ring.submitter().register_files_update(place, &[file.as_fd().as_raw_fd()]) {
            Ok(1) => files.push(file.id()),
            _ => {
                self.files = None;
                return None;
            }
        }
        Some(types::Fixed(place))
    }

    /// Takes a completion that is there, of a read that is in flight.
    fn take(&mut self) -> Option<Completion> {
        loop {
            let entry = self.ring.completion().next()?;
            let ticket = entry.user_data() as usize;
            let Some(place) = self.in_flight.iter().position(|&submitted| submitted == ticket) else {
                tracing::warn!(ticket, "io_uring reports a read that is not in flight");
                continue;
            };
            self.in_flight.swap_remove(place);
            let result = match entry.result() {
                code if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                bytes => Ok(bytes as usize),
            };
            return Some(Completion { ticket, result });
        }
    }
}

/// Submits what does nothing, and waits for it: a filter of system calls may let rings be made, and not entered.
fn try_out(ring: &mut IoUring) -> io::Result<()> {
    // SAFETY: it neither reads nor writes memory.
    if unsafe { ring.submission().push(&opcode::Nop::new().build()) }.is_err() {
        return Err(io::Error::other("a new ring is full"));
    }
    let mut retries = Retries::default();
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if retries.allow(&error) => continue,
            Err(error) => return Err(retries.explain(error)),
        }
        return match ring.completion().next() {
            Some(entry) if entry.result() < 0 => {
                Err(io::Error::from_raw_os_error(entry.result().saturating_neg()))
            }
            Some(_) => Ok(()),
            None => Err(io::Error::other("a new ring does not complete what was submitted")),
        };
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
        let number = read.file.as_fd().as_raw_fd();
        let entry = match (self.registered(read.file), fixed) {
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
        self.in_flight.push(read.ticket);
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
        let mut refusals = 0;
        loop {
            if let Some(completion) = self.take() {
                return Ok(completion);
            }
            if self.in_flight.is_empty() {
                return Err(io::Error::other("no read is in flight"));
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
                        && refusals < MOST_REFUSALS =>
                {
                    refusals += 1;
                    thread::yield_now();
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Ring {
    /// Takes every completion (U1).
    fn drain(&mut self) {
        while !self.in_flight.is_empty() {
            if let Err(error) = self.complete() {
                let reads = self.in_flight.len();
                // What it has not taken never begins. The rest ends without a call, too; closing the ring would not wait for that (U1).
                let waiting = self.ring.submission().len();
                while self.in_flight.len() > waiting {
                    if self.take().is_none() {
                        thread::yield_now();
                    }
                }
                // Only now: a subscriber that panics ends this.
                tracing::error!(%error, reads, "io_uring refuses to wait for its reads");
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
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::sync::mpsc::{self, RecvTimeoutError};
    use std::time::Duration;

    use super::*;
    use crate::io::buffer_at;
    use crate::test_support::fork::in_child;

    fn pipe() -> (Arc<OpenFile>, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (OpenFile::alone(OwnedFd::from(reader)), writer)
    }

    #[test]
    fn a_forked_child_leaves_the_ring_and_its_reads_to_its_parent() {
        let Ok(ring) = Ring::open(2) else { return };
        let (reader, mut writer) = pipe();
        let mut bytes = [0_u8; 4];
        // SAFETY: the buffer stays until the queue has been dropped, and no one else touches it.
        let buffers = &mut [unsafe { buffer_at(bytes.as_mut_ptr(), bytes.len()) }];
        let mut queue = Some(ring);
        let read = Read { ticket: 0, file: &reader, offset: 0, buffers, cached_only: false };
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
        let (reader, mut writer) = pipe();
        let mut bytes = [0_u8; 4];
        // SAFETY: the buffer stays until the queue has been dropped, and no one else touches it.
        let buffers = &mut [unsafe { buffer_at(bytes.as_mut_ptr(), bytes.len()) }];
        let read = Read { ticket: 0, file: &reader, offset: 0, buffers, cached_only: false };
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

    #[test]
    fn a_completion_of_no_read_is_not_counted() {
        let Ok(mut queue) = Ring::open(2) else { return };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"here").unwrap();
        let file = OpenFile::alone(file);
        for ticket in [1, 7, usize::MAX] {
            let none = opcode::Nop::new().build().user_data(ticket as u64);
            // SAFETY: it neither reads nor writes memory.
            unsafe { queue.ring.submission().push(&none) }.unwrap();
            queue.ring.submit().unwrap();
            let mut bytes = [0_u8; 4];
            // SAFETY: the buffer stays until the completion has been taken below, and no one else touches it.
            let buffers = &mut [unsafe { buffer_at(bytes.as_mut_ptr(), bytes.len()) }];
            let read = Read { ticket: 0, file: &file, offset: 0, buffers, cached_only: false };
            // SAFETY: as above; the file is closed after the queue.
            unsafe { queue.submit(read) }.unwrap();
            let completion = queue.complete().unwrap();
            assert_eq!((completion.ticket, completion.result.unwrap(), &bytes), (0, 4, b"here"));
            assert!(queue.complete().is_err(), "nothing is in flight");
        }
    }

    #[test]
    fn files_are_read_on_file_systems_that_are_known_and_on_no_others() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let source = FileSource::open(file.path()).unwrap();
        Uring::on(|_| FileSystem::EXT4).check_trust(&source).unwrap();
        let refused = Uring::on(|_| FileSystem::FUSE).open(&source, WhenFull::Wait).unwrap_err();
        assert!(
            refused.kind() == io::ErrorKind::Unsupported && refused.to_string().contains("on FUSE"),
            "{refused}"
        );
        // One that the library does not know: a network's, or one that is laid over others.
        for unknown in [|_: &FileSource| FileSystem::NFS, |_: &FileSource| FileSystem::UNKNOWN] {
            assert!(Uring::on(unknown).check_trust(&source).is_err());
        }
    }
}
