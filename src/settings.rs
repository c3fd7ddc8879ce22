//! Settings from the environment: the one place that reads it. `docs/settings.md` lists them.
//!
//! They are defaults for options that were not set in code.

use std::env;
use std::ffi::OsStr;

use crate::error::{Error, Result};

/// The number of reader threads; see [`Loader::threads`](crate::Loader::threads).
pub const THREADS: &str = "TENSORHOLD_THREADS";

/// Bytes of staging memory; see [`Loader::staging_bytes`](crate::Loader::staging_bytes).
pub const STAGING_BYTES: &str = "TENSORHOLD_STAGING_BYTES";

/// How files are read: `auto`, `buffered`, `direct` or `io-uring`; see [`Loader::backend`](crate::Loader::backend).
pub const BACKEND: &str = "TENSORHOLD_BACKEND";

/// Every variable that is read.
pub const ALL: [&str; 3] = [THREADS, STAGING_BYTES, BACKEND];

/// The value of a variable that holds a whole number; `None` when it is not set.
///
/// # Errors
/// When it is set to something else.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn number(variable: &'static str) -> Result<Option<u64>> {
    let Some(value) = env::var_os(variable) else { return Ok(None) };
    match value.to_str().and_then(|value| value.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(wrong(variable, &value, "a whole number".into())),
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

fn wrong(variable: &'static str, value: &OsStr, expected: String) -> Error {
    Error::Setting { variable, got: value.to_string_lossy().into_owned(), expected }
}
