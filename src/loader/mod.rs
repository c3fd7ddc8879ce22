//! Loading a checkpoint: plan, reserve, read, publish.
//!
//! 1. **Plan** ([`setup`]): headers are read and checked ([`metadata`]), and conversions and cuts are
//!    resolved ([`transform`]). The tensors are laid out and divided into jobs ([`plan`]).
//! 2. **Reserve** ([`setup`]): the pool places one block for each region of the layout.
//! 3. **Read** ([`execute`]): readers take jobs, each by the faster route, and bring the bytes to their
//!    places ([`pipeline`]), in place or through staging memory ([`staging`]).
//! 4. **Publish** ([`execute`]): when the last byte has arrived and the files have not changed, the tensors
//!    become [`Weights`](crate::Weights). A [`TensorStream`] returns each tensor as soon as it has arrived.
//!
//! # Folders
//! Dependencies between folders point one way; `tests/architecture.rs` enforces that.
//!
//! ```text
//! the files here: builder, load, setup, execute, ...
//!   └─> pipeline ─> tuning ─> plan ─> metadata ─> transform
//!                      └────> staging
//! ```
//!
//! The files here depend on each other in this order: `load`, `group`, `builder`, then `batches`, `batching`,
//! `checkpoint` and `stream`, then `setup`, `execute` and `options`. `parallel`, `pools` and `progress`
//! depend on no other file here, and any folder may use them.

mod batches;
mod batching;
mod builder;
mod checkpoint;
mod execute;
mod group;
mod load;
mod metadata;
mod options;
mod parallel;
mod pipeline;
mod plan;
mod pools;
mod progress;
mod setup;
mod staging;
mod stream;
#[cfg(test)]
mod tests;
mod transform;
mod tuning;

pub use batches::Batches;
pub use batching::{BatchPlan, Batching};
pub use builder::Loader;
pub use checkpoint::Checkpoint;
pub use metadata::{FileInfo, Inspection};
pub use progress::Progress;
pub use stream::TensorStream;
pub use transform::{Cut, CutReads, TransformOn};
