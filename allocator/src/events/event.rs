//! [`Event`] and [`Header`]: what a log consists of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::offsets::Policy;

/// The version of the file.
pub const VERSION: u32 = 1;

/// An event and its time, in nanoseconds since the pool was built.
pub type Timed = (u64, Event);

/// What a log says of its pool; the options are the builder's.
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
    /// The most bytes that a region of a planned batch may have.
    pub max_region_bytes: Option<u64>,
    /// The most bytes that may be reserved.
    pub limit_bytes: Option<u64>,
    /// Bytes of empty regions that are kept.
    pub retain_bytes: u64,
    /// How places in regions are found.
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
/// Fragments and regions are numbered from 0 in the order in which they come into the log; a number is never used again.
/// The blocks that planned batches are cut from are numbered as fragments are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Event {
    /// A region came.
    Grow {
        /// Its number.
        #[serde(rename = "r")]
        region: u64,
        /// Its size.
        #[serde(rename = "b")]
        bytes: u64,
    },
    /// A fragment was placed by itself.
    Alloc {
        /// Its number.
        #[serde(rename = "n")]
        fragment: u64,
        /// What it is called.
        #[serde(rename = "l")]
        label: Arc<str>,
        /// Its size as asked for. An empty fragment lies nowhere: its region and offset are 0 and mean nothing.
        #[serde(rename = "b")]
        bytes: u64,
        /// The alignment asked for.
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
        /// What the batch is called until it is cut.
        #[serde(rename = "l")]
        label: Arc<str>,
        /// Its size, from the batch's first byte to its last, and never 0.
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
    /// A planned batch was cut into its fragments; its blocks are no more.
    Cut {
        /// The blocks.
        #[serde(rename = "k")]
        blocks: Vec<u64>,
        /// The number of the first part; the others are numbered on from there.
        #[serde(rename = "n")]
        first: u64,
        /// The fragments, in the order of the batch.
        #[serde(rename = "p")]
        parts: Vec<Part>,
    },
    /// The reaper, or a placement, found that these have no owner any more.
    Retire(Vec<u64>),
    /// The ranges of these can be used again.
    Reap(Vec<u64>),
    /// The memory could not be synchronized: the ranges of these are taken for good.
    Lose(Vec<u64>),
    /// The reaper is about to give back empty regions, but for those that fit into so many bytes.
    Trim {
        /// Bytes that may stay.
        #[serde(rename = "k")]
        keep: u64,
    },
    /// A part of a region has gone back to the memory.
    Part {
        /// The region's number.
        #[serde(rename = "r")]
        region: u64,
        /// The part's size.
        #[serde(rename = "b")]
        bytes: u64,
    },
    /// A region is on its way back to the memory.
    Release {
        /// Its number.
        #[serde(rename = "r")]
        region: u64,
        /// Its size, without the parts that went back before.
        #[serde(rename = "b")]
        bytes: u64,
    },
    /// The pool has closed. What was being placed then may still come, and what is held goes when it is dropped.
    Close,
}

/// A fragment of a planned batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u64, Arc<str>)", into = "(u32, u64, u64, Arc<str>)")]
pub struct Part {
    /// Which of the batch's blocks it lies in. Its alignment was that block's or less.
    pub block: u32,
    /// Offset in that block.
    pub offset: u64,
    /// Its size as asked for. An empty one lies nowhere: its block and offset mean nothing.
    pub bytes: u64,
    /// What it is called.
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
    /// How much of the buffer it takes.
    pub(super) fn weight(&self) -> usize {
        1 + match self {
            Self::Cut { parts, .. } => parts.len(),
            // Eight bytes each, where an event has about a hundred.
            Self::Retire(numbers) | Self::Reap(numbers) | Self::Lose(numbers) => numbers.len() / 8,
            _ => 0,
        }
    }
}
