//! Loads safetensors checkpoints into a few large device, pinned or host regions at the speed of the bus, and hands
//! out tensor views that the compiler, or a reference count, keeps from outliving their memory.
//!
//! ```no_run
//! use tensorhold::{Device, Loader};
//!
//! let device = Device::cuda(0).unwrap_or_else(|_| Device::host());
//! let weights = Loader::new(device).checkpoint("llama/")?.load()?;
//!
//! let view = weights.view("model.norm.weight")?; // TensorView<'_>: a borrow of `weights`, free to make
//! println!("{:?}: {} bytes", view.shape(), view.nbytes());
//! let tensor = weights.tensor("lm_head.weight")?; // Tensor: keeps its own bytes alive, on any thread
//! let closed = weights.close(); // does not compile while `view` is used below
//! assert_eq!(closed.held.len(), 1); // close says what `tensor` still holds
//! # drop(tensor);
//! # Ok::<(), tensorhold::Error>(())
//! ```
//!
//! On their way, tensors can be converted ([`Loader::dtype`]) and cut ([`Loader::cut_by`], [`Loader::shard`], [`Loader::narrow`]). A few at a time come from
//! a checkpoint that stays [open](Loader::open), more than the memory holds in [batches](Loader::batches); [`save`] is the way back to files.
//!
//! # The rooms
//! Dependencies point one way: `store` → `loader` → `weights`, [`group`] → `tensor` → `io` → `device` → the allocator crate; [`save`] is beside the
//! loader; `format`, `report`, `names`, `dtype`, `shape` and `error` are used by all. `docs/architecture.md` walks through them,
//! `docs/memory-safety.md` says why no tensor can dangle.
//!
//! # Invariants
//! Named in the `SAFETY` comments:
//! - **I1 Memory outlives use.** A range is reused or released only when no view, tensor or copy in flight can touch it.
//! - **I2 Each byte is read once and written once**, to its final, aligned address.
//! - **I3 Nothing is visible before it has arrived.**
//! - **I4 A failure leaves nothing behind.**
//! - **I5 Files are hostile.** Nothing from a file is trusted before it is checked.
//! - **I6 Choices are automatic or required**, and the [`Report`] says what was picked and why.
//! - **I7 No one is believed.** Unsafe code relies on what it checked itself, or on a named promise of an `unsafe` trait.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::todo, clippy::unimplemented)]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_endian = "little")))]
compile_error!(
    "tensorhold supports 64-bit little-endian Linux only: it relies on Linux system calls and on 64-bit offsets"
);

mod device;
mod dtype;
mod error;
mod fork;
mod format;
pub mod group;
mod io;
mod limits;
mod loader;
mod names;
mod regular;
mod report;
pub mod save;
pub mod settings;
mod shape;
mod store;
mod tensor;
mod weights;

#[cfg(feature = "dlpack")]
pub use dlpark;

pub use device::{ContextGuard, Device, DeviceKind, Driver, HandleTypes, Stream, Transform};
pub use dtype::{DType, Element};
pub use error::{Error, Remedy, Result, Vocabulary};
pub use format::{Deserialized, LeftOut, TensorBytes, foreign_format};
pub use io::gds::gds_memory;
pub use io::{Backend, BackendKind};
pub use loader::{
    BatchPlan, Batches, Batching, Checkpoint, Cut, CutReads, FileInfo, Inspection, Loader, Progress,
    TensorStream, TransformOn,
};
pub use report::{Choice, Converted, Report, Stages, Times};
pub use shape::Shape;
pub use store::{OldVersion, WeightStore};
#[cfg(feature = "cuda-external")]
pub use tensor::{Lent, LentMut};
pub use tensor::{Tensor, TensorInfo, TensorView, TensorViewMut};
pub use tensorhold_allocator as allocator;
pub use tensorhold_allocator::{Closed, Held, OrderedStream, Pool, StillHeld, StreamUse};
pub use tensorhold_kernels as kernels;
pub use tensorhold_kernels::Overflow;
pub use weights::{Metadata, Weights};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/fastsafetensors.md")]
struct Fastsafetensors;

#[cfg(doctest)]
#[doc = include_str!("../docs/allocator.md")]
struct Allocator;

#[cfg(doctest)]
#[doc = include_str!("../docs/batches.md")]
struct BatchesAndParts;

// The unit tests share the support code of the integration tests, which names the crate.
#[cfg(test)]
extern crate self as tensorhold;

#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod test_support;
