//! Reads through the page cache.

use std::io;

use rustix::io::ReadWriteFlags;

use super::{Access, Completion, Engine, FileSource, Queue, Read, WhenFull};

/// Positioned, vectored reads through the page cache.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Buffered;

impl Engine for Buffered {
    fn open(&self, file: &FileSource, _when_full: WhenFull) -> io::Result<Access> {
        Ok(Access { file: file.cached().clone(), alignment: 1 })
    }

    fn queue(&self, _depth: usize) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(Blocking::default()))
    }
}

/// One read at a time: it has ended when `submit` returns.
#[derive(Debug, Default)]
pub(super) struct Blocking {
    ended: Option<Completion>,
}

impl Queue for Blocking {
    fn depth(&self) -> usize {
        1
    }

    unsafe fn submit(&mut self, read: Read<'_, '_>) -> io::Result<()> {
        let flags = if read.cached_only { ReadWriteFlags::NOWAIT } else { ReadWriteFlags::empty() };
        let result = if flags.is_empty() {
            rustix::io::preadv(read.file, read.buffers, read.offset)
        } else {
            rustix::io::preadv2(read.file, read.buffers, read.offset, flags)
        };
        self.ended = Some(Completion { ticket: read.ticket, result: result.map_err(io::Error::from) });
        Ok(())
    }

    fn complete(&mut self) -> io::Result<Completion> {
        self.ended.take().ok_or_else(|| io::Error::other("no read is in flight"))
    }
}
