//! What a load says of itself.

use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::device::Device;
use crate::format::LeftOut;

/// How a load went: sizes in bytes, times in seconds when serialized.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Where the tensors are.
    pub device: Device,
    /// Tensors loaded.
    pub tensors: usize,
    /// Bytes of those tensors, as they are now.
    pub bytes: u64,
    /// How many bytes of the files were read through the page cache.
    pub cached_bytes: u64,
    /// How many bytes of the files were read past it, by others than cuFile.
    pub direct_bytes: u64,
    /// How many bytes of the files cuFile read, whichever way it takes. The three together are the tensors' bytes, unless tensors were converted, or
    /// cut out of rows that were read as a whole.
    pub gds_bytes: u64,
    /// Files read.
    pub files: usize,
    /// Regions that hold the tensors.
    pub regions: usize,
    /// Bytes of those regions: those of the tensors and the padding that aligns them.
    pub region_bytes: u64,
    /// Threads that read.
    pub threads: usize,
    /// Most bytes of staging memory at any time, with the scratch on the device that cuFile reads into; 0 when the files are read in
    /// place.
    pub staging_bytes: u64,
    /// Reads, and copies if the data was staged.
    pub jobs: usize,
    /// Where the time went.
    pub times: Times,
    /// What was chosen, and why.
    pub choices: Vec<Choice>,
    /// The converted tensors that had values out of range, or NaN, if [that was counted](crate::Loader::count_conversions).
    pub converted: Option<Vec<Converted>>,
    /// Safetensors files of the checkpoint's folder that were not loaded, and files of which some tensors were not.
    pub left_out: Arc<[LeftOut]>,
}

/// What a conversion met in a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Converted {
    /// The tensor.
    pub name: Arc<str>,
    /// Values that are not NaN, and would round to more than the largest finite value of the new type. An infinity that stays one is not counted.
    pub out_of_range: u64,
    /// NaN, which stays NaN.
    pub nan: u64,
}

/// Where the time of a load went. `total` is from the call of `load` to its return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Times {
    /// Opening files, reading and checking their headers, planning.
    #[serde(serialize_with = "seconds")]
    pub plan: Duration,
    /// Reserving regions.
    #[serde(serialize_with = "seconds")]
    pub reserve: Duration,
    /// Reading and copying the tensors' bytes.
    #[serde(serialize_with = "seconds")]
    pub fill: Duration,
    /// Everything.
    #[serde(serialize_with = "seconds")]
    pub total: Duration,
    /// What `fill` consists of.
    pub stages: Stages,
}

/// Where the readers' time went: the mean over all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Stages {
    /// Making streams and the first staging slots ready.
    #[serde(serialize_with = "seconds")]
    pub open: Duration,
    /// Reading, or waiting for reads.
    #[serde(serialize_with = "seconds")]
    pub read: Duration,
    /// Waiting for a staging slot.
    #[serde(serialize_with = "seconds")]
    pub wait: Duration,
    /// Handing copies to the device, or moving bytes to their places.
    #[serde(serialize_with = "seconds")]
    pub send: Duration,
    /// Waiting for the last copies.
    #[serde(serialize_with = "seconds")]
    pub finish: Duration,
}

/// One thing that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Choice {
    /// What it is about, such as `threads`.
    pub about: &'static str,
    /// What was picked.
    pub picked: String,
    /// Why.
    pub why: String,
}

impl Report {
    /// Bytes of files over the whole time, in 10^9 bytes a second: of tensors, where they are loaded as they are.
    pub fn gigabytes_per_second(&self) -> f64 {
        (self.cached_bytes + self.direct_bytes + self.gds_bytes) as f64
            / 1e9
            / self.times.total.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
