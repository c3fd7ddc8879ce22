//! Planning a load: where tensors lie in memory, and which jobs read them. No I/O, and no memory of tensors.

mod batch_schedule;
pub(crate) mod budget;
mod jobs;
#[cfg(test)]
mod jobs_tests;
mod layout;
mod planner;
mod strided_jobs;
#[cfg(test)]
mod strided_jobs_tests;

pub(crate) use batch_schedule::{BatchItem, BatchRequest, BatchSchedule, schedule};
pub(crate) use jobs::{Job, JobTransform, Limits, Plan, StridedRead};
pub(crate) use layout::{LayoutOptions, LoadLayout};
pub(crate) use strided_jobs::{choices, is_transformed, transform_job_bytes};
