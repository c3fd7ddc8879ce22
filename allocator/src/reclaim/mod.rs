//! How dropped ranges become free, and empty regions go back to their memory.

pub(crate) mod pending;
pub(crate) mod reaper;
