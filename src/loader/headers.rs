//! Opening the files of a checkpoint and reading their headers, several at a time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::error::Result;
use crate::format::{self, Header};
use crate::io::FileSource;

/// An open file and its header.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) source: FileSource,
    pub(super) header: Header,
}

/// Opens each file and parses its header; in the order of `paths`. The error, if any, is that of the first file that
/// has one.
pub(super) fn open_all(paths: &[PathBuf], threads: usize) -> Result<Vec<Opened>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(paths.len()));
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(index) else { return };
            let result = open(path);
            results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    };
    thread::scope(|scope| {
        // This thread works too, so the others are help: one that cannot be started is not missed.
        for _ in 1..threads.min(paths.len()) {
            if thread::Builder::new().name("tensorhold-open".into()).spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

fn open(path: &Path) -> Result<Opened> {
    let source = FileSource::open(path)?;
    let mut prefix = [0; 8];
    let prefix_bytes = source.read(&mut prefix, 0)?;
    let length =
        format::header_len(&prefix[..prefix_bytes], source.len()).map_err(|problem| problem.of(path))?;
    let mut bytes = vec![0; length];
    let got = source.read(&mut bytes, 8)?;
    if got < length {
        return Err(source.changed(format!("it was cut short to {} bytes", 8 + got)));
    }
    let header = format::parse(&bytes, source.len()).map_err(|problem| problem.of(path))?;
    Ok(Opened { source, header })
}
