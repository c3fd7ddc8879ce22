//! [`Policy`]: where a replay places.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a request is placed.
///
/// A new policy is a variant here, a line in [`ALL`](Self::ALL) and [`name`](Self::name), and one in `space.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// In the smallest free block that holds it: [`BestFit`](crate::offsets::BestFit), as pools do by default.
    BestFit,
    /// In the first free block of a class that is large enough: [`Segregated`](crate::offsets::Segregated).
    Segregated,
    /// After the previous request: [`Bump`](crate::offsets::Bump). No range is reused before its region is released.
    Planned,
}

impl Policy {
    /// All policies.
    pub const ALL: &[Self] = &[Self::BestFit, Self::Segregated, Self::Planned];

    /// Its name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BestFit => "best-fit",
            Self::Segregated => "segregated",
            Self::Planned => "planned",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name of no policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a policy: {}", Policy::ALL.iter().map(|policy| policy.name()).collect::<Vec<_>>().join(", "))]
pub struct UnknownPolicy;

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.iter().copied().find(|policy| policy.name() == text).ok_or(UnknownPolicy)
    }
}
