//! [`Key`]: names a live block of a space; and the errors of stale keys.

use std::num::NonZeroU64;

/// Names a live block. After its block is freed, a key is stale: it never names another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub(super) index: u32,
    /// Not 0, so that an `Option` of it takes no more room.
    pub(super) stamp: NonZeroU64,
}

/// A block that was just taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Frees it.
    pub key: Key,
}

/// A block of a space, free or live, as [`Space::blocks`](super::Space::blocks) lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its length in bytes, rounding included.
    pub size: u64,
    /// The key of a live block; `None` for a free one.
    pub key: Option<Key>,
}

/// A key whose block has been freed, or that belongs to another space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key is stale: its block has been freed")]
pub struct StaleKey;

/// Why a block cannot be carved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarveError {
    /// See [`StaleKey`].
    #[error(transparent)]
    Stale(#[from] StaleKey),
    /// The offsets do not begin at 0, do not ascend, or run past the block.
    #[error(
        "part {index} begins at offset {offset}: parts begin at 0 and ascend within a block of {size} bytes"
    )]
    Offsets {
        /// Which part.
        index: usize,
        /// Its offset.
        offset: u64,
        /// The block's size in bytes.
        size: u64,
    },
    /// A space holds fewer than 2^31 blocks.
    #[error("{parts} parts are more than the space can name; carve fewer at once")]
    TooMany {
        /// The requested number of parts.
        parts: usize,
    },
}
