//! Settings from the environment: the one place that reads it. `docs/settings.md` lists them.
//!
//! They are defaults for options that were not set in code.

use std::env;

use crate::error::{Error, Result};

/// The number of reader threads; see [`Loader::threads`](crate::Loader::threads).
pub const THREADS: &str = "TENSORHOLD_THREADS";

/// Bytes of staging memory; see [`Loader::staging_bytes`](crate::Loader::staging_bytes).
pub const STAGING_BYTES: &str = "TENSORHOLD_STAGING_BYTES";

/// Every variable that is read.
pub const ALL: [&str; 2] = [THREADS, STAGING_BYTES];

/// The value of a variable that holds a whole number; `None` when it is not set.
///
/// # Errors
/// When it is set to something else.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn number(variable: &'static str) -> Result<Option<u64>> {
    let Some(value) = env::var_os(variable) else { return Ok(None) };
    match value.to_str().and_then(|value| value.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(Error::Setting { variable, got: value.to_string_lossy().into_owned() }),
    }
}
