//! cuFile's log, which it writes into the working directory of whoever loads it, unless it was told otherwise.
//!
//! It opens the log once, before it looks at any of the parameters that can be set by a call (seen in 1.14 and 1.15): only the environment, which a
//! library leaves alone, or a configuration file keep it away. So what appears there while the driver is opened is passed on to `tracing` and
//! removed. What cuFile says afterwards goes into a file without a name, and with the process.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::OFlags;

use crate::regular;

/// The name that cuFile gives it.
const NAME: &str = "cufile.log";

/// No more of it is passed on.
const MAX_BYTES: u64 = 16 << 10;

/// The place where the log may appear, watched while the driver is opened.
#[derive(Debug)]
pub(super) struct Log {
    /// `None` where whoever runs this wants it, or it was there before.
    appears: Option<PathBuf>,
}

impl Log {
    /// Looks at the folder, before. With `wanted`, someone has said where the log goes: it stays.
    pub(super) fn watch(folder: &Path, wanted: bool) -> Self {
        // The working directory may be another when the log is taken.
        let path = fs::canonicalize(folder).unwrap_or_else(|_| folder.into()).join(NAME);
        let appears = !wanted && !fs::exists(&path).unwrap_or(true);
        Self { appears: appears.then_some(path) }
    }

    /// Takes away what has appeared.
    pub(super) fn take(self) {
        let Some(path) = self.appears else { return };
        let mut text = Vec::new();
        let read = regular::open(&path, OFlags::empty()).map_err(io::Error::from);
        match read.and_then(|(file, _)| file.take(MAX_BYTES).read_to_end(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return tracing::warn!(%error, ?path, "cuFile's log is not to be read, and stays"),
        };
        let shown = String::from_utf8_lossy(&text);
        tracing::debug!(log = %shown.trim(), "cuFile says");
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, ?path, "cuFile's log stays");
        }
    }
}
