//! Opening cuFile's driver, which has its dangers.
//!
//! - Where `/proc/modules` is not to be read, the driver looks for its end for ever (seen in 1.15 to 1.20). So it has to be there.
//! - Whatever else keeps the driver shall not keep a load. So a thread that no one joins opens it, and a limited time is waited for
//!   it. If it takes longer, there is no cuFile for as long as the process lives. The thread stays with what it is at: nothing ends a thread from outside.
//!   A child process could be ended, but a library cannot make one safely: it has no program of its own to start, and a fork of a process with threads
//!   that uses CUDA may do nothing of use.
//! - It writes a [`Log`] into the working directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::Missing;
use super::library::{CuFile, Found, candidates};
use super::log::Log;
use crate::error::Remedy;
use crate::{limits, settings};

/// Opening takes 0.3 s on a machine with one device, and seconds where there are many devices and network cards.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the driver is opened with.
#[derive(Debug, Clone)]
pub(super) struct Guards {
    /// What it looks for, and would look for for ever.
    pub(super) modules: PathBuf,
    pub(super) patience: Duration,
    /// Where the log would be written.
    pub(super) folder: PathBuf,
    /// Someone has said where the log goes.
    pub(super) log_wanted: bool,
}

/// The cuFile of this process: looked for once.
///
/// # Errors
/// When there is none that can be used.
pub(super) fn of_the_process() -> Result<Arc<CuFile>, Missing> {
    static OPENED: OnceLock<Result<Arc<CuFile>, Missing>> = OnceLock::new();
    OPENED
        .get_or_init(|| {
            let places = settings::cufile();
            let paths = match places.file {
                Some(path) if path.is_dir() => vec![path.join("libcufile.so.0")],
                Some(path) => vec![path],
                None => candidates(&places.environments),
            };
            let guards = Guards {
                modules: "/proc/modules".into(),
                patience: PATIENCE,
                folder: ".".into(),
                log_wanted: places.log_wanted,
            };
            open(paths, guards).inspect_err(|missing| tracing::debug!(detail = %missing.detail, "no cuFile"))
        })
        .clone()
}

/// Loads the first of these libraries that is there, and opens its driver.
///
/// # Errors
/// When none can be used, or it takes too long.
pub(super) fn open(paths: Vec<PathBuf>, guards: Guards) -> Result<Arc<CuFile>, Missing> {
    readable(&guards.modules)?;
    let patience = guards.patience;
    let (sender, opened) = mpsc::channel();
    let work = move || {
        let log = Log::watch(&guards.folder, guards.log_wanted);
        let cufile = Found::load(&paths).and_then(|found| {
            tracing::debug!(path = ?found.path(), "opening cuFile's driver");
            found.open_driver()
        });
        log.take();
        // Whoever waited may have gone.
        let _ = sender.send(cufile);
    };
    let thread = thread::Builder::new().name("tensorhold-cufile".into()).spawn(work);
    thread.map_err(|error| {
        let limits = limits::of_threads(&error).problem;
        Missing::new(
            format!("the system refuses a thread to open cuFile on: {error}; {limits}"),
            "raise the limit on threads",
        )
    })?;
    match opened.recv_timeout(patience) {
        Ok(cufile) => cufile.map(Arc::new),
        Err(error) => {
            let what = match error {
                RecvTimeoutError::Timeout => format!("has not opened its driver within {patience:?}"),
                RecvTimeoutError::Disconnected => "failed while it opened its driver".into(),
            };
            Err(Missing::new(
                format!("cuFile {what}, and is left alone for as long as this process lives"),
                Remedy::CUFILE_LOG,
            ))
        }
    }
}

fn readable(modules: &Path) -> Result<(), Missing> {
    File::open(modules).map(drop).map_err(|error| {
        Missing::new(
            format!(
                "{} is not to be read ({error}), and cuFile would look for it for ever",
                modules.display()
            ),
            Remedy::CUFILE_PROC,
        )
    })
}
