//! [`Event`] and [`Header`]: what a log consists of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::offsets::Policy;

/// The version of the file.
pub const VERSION: u32 = 1;

/// An event and its time, in nanoseconds since the pool was built.
pub type Timed = (u64, Event);

/// Describes the pool of a log; the options are those of the builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Header {
    /// Version of the file: [`VERSION`].
    #[serde(rename = "tensorhold_events")]
    pub version: u32,
    /// The pool's name.
    pub pool: String,
    /// The memory's name.
    pub memory: String,
    /// Ranges are rounded up to a multiple of this many bytes.
    pub granule: u64,
    /// Size of the regions that single placements share, in bytes.
    pub region_bytes: u64,
    /// The largest region of a planned batch, in bytes.
    pub max_region_bytes: Option<u64>,
    /// The most bytes that may be reserved.
    pub limit_bytes: Option<u64>,
    /// Bytes of empty regions that are kept.
    pub retain_bytes: u64,
    /// The placement policy.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: Policy,
    /// Whether the regions of planned batches are backed in parts, and nothing else is placed there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_parts: bool,
}

fn is_default(policy: &Policy) -> bool {
    *policy == Policy::default()
}

/// A change of a pool's books. All sizes and offsets in bytes.
///
/// Fragments and regions are numbered from 0 in the order of the log; numbers are not reused. The blocks of planned batches
/// share the numbers of fragments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Event {
    /// A region was added.
    Grow {
        /// Its number.
        #[serde(rename = "r")]
        region: u64,
        /// Its size.
        #[serde(rename = "b")]
        bytes: u64,
    },
    /// A single fragment was placed.
    Alloc {
        /// Its number.
        #[serde(rename = "n")]
        fragment: u64,
        /// Its label.
        #[serde(rename = "l")]
        label: Arc<str>,
        /// Its requested size. The region and offset of an empty fragment are 0 and have no meaning.
        #[serde(rename = "b")]
        bytes: u64,
        /// The requested alignment.
        #[serde(rename = "a")]
        align: u64,
        /// The region.
        #[serde(rename = "r")]
        region: u64,
        /// Offset in the region.
        #[serde(rename = "o")]
        offset: u64,
    },
    /// A block was taken for one region of a planned batch's layout.
    Take {
        /// Its number.
        #[serde(rename = "n")]
        block: u64,
        /// The batch's label until it is cut.
        #[serde(rename = "l")]
        label: Arc<str>,
        /// Its size, from the batch's first byte to its last; never 0.
        #[serde(rename = "b")]
        bytes: u64,
        /// The largest alignment of the batch's fragments in this block.
        #[serde(rename = "a")]
        align: u64,
        /// The region.
        #[serde(rename = "r")]
        region: u64,
        /// Offset in the region.
        #[serde(rename = "o")]
        offset: u64,
    },
    /// A planned batch was cut into its fragments, which replace its blocks.
    Cut {
        /// The blocks.
        #[serde(rename = "k")]
        blocks: Vec<u64>,
        /// The number of the first part; the others follow.
        #[serde(rename = "n")]
        first: u64,
        /// The fragments, in the order of the batch.
        #[serde(rename = "p")]
        parts: Vec<Part>,
    },
    /// The reaper or a placement took these off the retire queue: they have no owners.
    Retire(Vec<u64>),
    /// The ranges of these are free.
    Reap(Vec<u64>),
    /// The memory could not be synchronized: the ranges of these are never freed.
    Lose(Vec<u64>),
    /// The reaper is about to release empty regions, except for those that fit into `keep` bytes.
    Trim {
        /// Bytes that may stay.
        #[serde(rename = "k")]
        keep: u64,
    },
    /// A part of a region was released.
    Part {
        /// The region's number.
        #[serde(rename = "r")]
        region: u64,
        /// The part's size.
        #[serde(rename = "b")]
        bytes: u64,
    },
    /// A region was removed, to be released.
    Release {
        /// Its number.
        #[serde(rename = "r")]
        region: u64,
        /// Its size, without the parts that were released before.
        #[serde(rename = "b")]
        bytes: u64,
    },
    /// The pool is closed. Placements under way may still follow, and held fragments are freed when they are dropped.
    Close,
}

/// A fragment of a planned batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u64, Arc<str>)", into = "(u32, u64, u64, Arc<str>)")]
pub struct Part {
    /// Index of the batch's block that it lies in. Its alignment was that block's or less.
    pub block: u32,
    /// Offset in that block.
    pub offset: u64,
    /// Its requested size. The block and offset of an empty one have no meaning.
    pub bytes: u64,
    /// Its label.
    pub label: Arc<str>,
}

impl From<(u32, u64, u64, Arc<str>)> for Part {
    fn from((block, offset, bytes, label): (u32, u64, u64, Arc<str>)) -> Self {
        Self { block, offset, bytes, label }
    }
}

impl From<Part> for (u32, u64, u64, Arc<str>) {
    fn from(part: Part) -> Self {
        (part.block, part.offset, part.bytes, part.label)
    }
}

impl Event {
    /// Its size in the buffer, in events.
    pub(super) fn weight(&self) -> usize {
        1 + match self {
            Self::Cut { parts, .. } => parts.len(),
            // Eight bytes each, where an event has about a hundred.
            Self::Retire(numbers) | Self::Reap(numbers) | Self::Lose(numbers) => numbers.len() / 8,
            _ => 0,
        }
    }
}
