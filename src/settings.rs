//! Settings from the environment: the one place that reads it. `docs/settings.md` lists them.
//!
//! They are defaults for options that were not set in code.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;

use tensorhold_allocator::Quoted;

use crate::error::{Error, Result};

/// The number of reader threads; see [`Loader::threads`](crate::Loader::threads).
pub const THREADS: &str = "TENSORHOLD_THREADS";

/// Bytes of staging memory; see [`Loader::staging_bytes`](crate::Loader::staging_bytes).
pub const STAGING_BYTES: &str = "TENSORHOLD_STAGING_BYTES";

/// How files are read: `auto`, `buffered`, `direct`, `io-uring` or `gds`; see [`Loader::backend`](crate::Loader::backend).
pub const BACKEND: &str = "TENSORHOLD_BACKEND";

/// Where cuFile is: the library or the folder that it is in.
pub const CUFILE: &str = "TENSORHOLD_CUFILE";

/// cuFile's own: where its log goes.
pub const CUFILE_LOG: &str = "CUFILE_LOGFILE_PATH";

/// cuFile's own: its configuration.
pub const CUFILE_CONFIG: &str = "CUFILE_ENV_PATH_JSON";

/// Python's own: the root of the environment that is active, whose packages may hold cuFile.
pub const VIRTUAL_ENV: &str = "VIRTUAL_ENV";

/// The same of conda.
pub const CONDA_PREFIX: &str = "CONDA_PREFIX";

/// Every variable that is read.
pub const ALL: [&str; 8] =
    [THREADS, STAGING_BYTES, BACKEND, CUFILE, CUFILE_LOG, CUFILE_CONFIG, VIRTUAL_ENV, CONDA_PREFIX];

/// The value of a variable that holds a whole number; `None` when it is not set. `expected` says which numbers the caller takes.
///
/// # Errors
/// When it is set to something else.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn number(variable: &'static str, expected: &str) -> Result<Option<u64>> {
    let Some(value) = env::var_os(variable) else { return Ok(None) };
    match value.to_str().and_then(|value| value.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(wrong(variable, &value, format!("a whole number, {expected}"))),
    }
}

/// The value of a variable that holds one of some words; `None` when it is not set.
///
/// # Errors
/// When it is set to something else.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn word(variable: &'static str, words: &[&'static str]) -> Result<Option<&'static str>> {
    let Some(value) = env::var_os(variable) else { return Ok(None) };
    match words.iter().find(|&&word| value == word) {
        Some(word) => Ok(Some(word)),
        None => Err(wrong(variable, &value, format!("one of {}", words.join(", ")))),
    }
}

/// What the environment says of cuFile.
#[derive(Debug)]
pub(crate) struct CuFile {
    /// The library, or the folder that it is in.
    pub(crate) file: Option<PathBuf>,
    /// Someone has said where its log goes.
    pub(crate) log_wanted: bool,
    /// Roots of environments of Python.
    pub(crate) environments: Vec<PathBuf>,
}

/// What the environment says of cuFile.
pub(crate) fn cufile() -> CuFile {
    CuFile {
        file: path(CUFILE),
        log_wanted: path(CUFILE_LOG).is_some(),
        environments: [VIRTUAL_ENV, CONDA_PREFIX].into_iter().filter_map(path).collect(),
    }
}

/// Where cuFile reads its configuration.
pub(crate) fn cufile_config() -> PathBuf {
    path(CUFILE_CONFIG).unwrap_or_else(|| "/etc/cufile.json".into())
}

/// The value of a variable that holds a path; `None` when it is not set, or empty.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
fn path(variable: &'static str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn wrong(variable: &'static str, value: &OsStr, expected: String) -> Error {
    Error::Setting { variable, got: Quoted(value.to_string_lossy()).to_string(), expected }
}
