//! [`Digest`]: a hash of all placements.

use std::fmt;
use std::hash::Hasher;

use fnv::FnvHasher;
use serde::{Deserialize, Serialize};

/// FNV-1a (64 bits) over the region number and offset of each fragment and block in order, as little-endian `u64`. A refused
/// request counts as `u64::MAX` twice, without its parts. Displayed in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(FnvHasher::default().finish())
    }
}

impl Digest {
    /// Enters a placement; `None` is a refusal.
    pub(super) fn enter(&mut self, place: Option<(u64, u64)>) {
        let (region, offset) = place.unwrap_or((u64::MAX, u64::MAX));
        let mut hasher = FnvHasher::with_key(self.0);
        hasher.write(&region.to_le_bytes());
        hasher.write(&offset.to_le_bytes());
        self.0 = hasher.finish();
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}
