//! Reading the jobs of a plan to their places.
//!
//! [`run`] starts [buffered readers](buffered_reader), which take jobs from the [queue](job_queue). The
//! [route](Routes) of a job says whether its bytes are in the page cache. If they are not, the job is
//! deferred to [direct readers](direct_reader), which may read by [cuFile](cufile). If the CPU cannot write
//! the target, buffered readers share a [staging ring](StagingRing), and each direct reader has slots of its
//! own.
//!
//! ```text
//! readers ─┬─> buffered_reader ─┬─> transform ─> strided_read ─> buffered_read ─┐
//!          ├─> direct_reader ───┘                                               ├─> context ─> the other files
//!          └─> cufile_setup ────────────────────────────────────────────────────┘
//! ```

mod buffered_read;
mod buffered_reader;
mod context;
mod cufile;
mod cufile_setup;
mod direct_reader;
mod job_queue;
mod queue_depth;
mod readers;
mod route;
mod scatter;
mod slot_group;
mod staging_ring;
mod stats;
mod strided_read;
mod transform;

pub(crate) use context::ReadContext;
pub(crate) use job_queue::{Arrivals, LoadControl};
pub(crate) use readers::{ReadFailure, ReadSummary, StopOnPanic, run};
pub(crate) use route::{RouteSummary, Routes};
pub(crate) use scatter::Scatter;
pub(crate) use staging_ring::StagingRing;
pub(crate) use stats::{ConversionStats, StageTotals};
