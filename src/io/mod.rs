//! Reading files: positioned reads from a [`Source`].
//!
//! A backend is one file here; the loader sees the trait alone. So far there is [`FileSource`], buffered reads through
//! the page cache.

mod file;

use std::io::{self, IoSliceMut};

pub(crate) use file::FileSource;

/// Bytes that can be read at any position, from many threads at once.
pub(crate) trait Source: Send + Sync {
    /// Reads from `offset` on into the buffers in turn, and returns how many bytes: fewer than asked for is normal,
    /// 0 is the end of the file. At most [`MAX_BUFFERS`] buffers.
    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize>;
}

/// How many buffers one read takes: Linux's `UIO_MAXIOV`.
pub(crate) const MAX_BUFFERS: usize = 1024;

/// Fills all buffers from `offset` on. Interrupted and short reads go on where they stopped.
///
/// Returns how many bytes were read: fewer than the buffers hold only at the end of the file.
pub(crate) fn read_full(
    source: &dyn Source,
    mut buffers: &mut [IoSliceMut<'_>],
    offset: u64,
) -> io::Result<u64> {
    let mut done = 0;
    // Empty buffers at the front would make a read of 0 bytes look like the end of the file.
    IoSliceMut::advance_slices(&mut buffers, 0);
    while !buffers.is_empty() {
        match source.read_at(buffers, offset + done) {
            Ok(0) => break,
            Ok(bytes) => {
                done += bytes as u64;
                IoSliceMut::advance_slices(&mut buffers, bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Reads of its bytes that are interrupted, short, or both.
    struct Halting {
        bytes: Vec<u8>,
        calls: AtomicU32,
    }

    impl Source for Halting {
        fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
            if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let rest = self.bytes.get(offset as usize..).unwrap_or_default();
            let mut taken = 0;
            for buffer in buffers {
                let part = buffer.len().min(rest.len() - taken).min(7);
                buffer[..part].copy_from_slice(&rest[taken..taken + part]);
                taken += part;
                if part < buffer.len() {
                    break;
                }
            }
            Ok(taken)
        }
    }

    fn halting(length: u8) -> Halting {
        Halting { bytes: (0..length).collect(), calls: AtomicU32::new(0) }
    }

    #[test]
    fn short_and_interrupted_reads_fill_all_buffers() {
        let (mut a, mut empty, mut b) = ([0; 20], [0; 0], [0; 31]);
        let buffers = &mut [IoSliceMut::new(&mut empty), IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        assert_eq!(read_full(&halting(100), buffers, 10).unwrap(), 51);
        assert!(a.iter().chain(&b).copied().eq(10..61));
    }

    #[test]
    fn the_end_of_the_file_ends_the_read() {
        let mut a = [0; 20];
        assert_eq!(read_full(&halting(15), &mut [IoSliceMut::new(&mut a)], 5).unwrap(), 10);
        assert_eq!(read_full(&halting(15), &mut [IoSliceMut::new(&mut a)], 99).unwrap(), 0);
    }
}
