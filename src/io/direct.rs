//! Reads past the page cache: whole blocks, straight into memory.

use std::io;

use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};

use super::buffered::Blocking;
use super::{Access, Engine, FileSource, MAX_ALIGNMENT, Queue, WhenFull};

/// `O_DIRECT`, one read at a time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Direct;

impl Engine for Direct {
    fn open(&self, file: &FileSource, when_full: WhenFull) -> io::Result<Access> {
        let file = file.with_flags(OFlags::DIRECT, None);
        let open = file.lease(when_full)?;
        // Where the kernel knows (6.1 and newer), the file system says what it wants; two zeros are a no.
        let said = statx(&*open, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            .ok()
            .filter(|stat| stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
        let alignment = match said {
            Some(stat) if stat.stx_dio_mem_align == 0 || stat.stx_dio_offset_align == 0 => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "the file system has no direct I/O"));
            }
            Some(stat) => u64::from(stat.stx_dio_mem_align.max(stat.stx_dio_offset_align)).max(MAX_ALIGNMENT),
            None => MAX_ALIGNMENT,
        };
        if alignment > MAX_ALIGNMENT {
            let problem = format!("the file system wants direct reads aligned to {alignment} bytes");
            return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
        }
        Ok(Access { file, alignment })
    }

    fn queue(&self, _depth: usize) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(Blocking::default()))
    }
}
