//! CUDA, through the driver API alone and found at run time.
//!
//! # Invariants
//! - **C1** Holding a [`Library`](library::Library) proves that the driver is loaded, has every symbol that is called
//!   here, and has been initialised.
//! - **C2** A [`Context`](context::Context) is a retained primary context. It is never released: that would tear the
//!   device down under whoever drops the last tensor, on whatever thread. The system does it when the process ends,
//!   and with it go the idle streams that the context keeps.
//! - **C3** A driver call that needs a context is made while a [`Current`](context::Current) guard lives.

mod context;
mod driver;
mod events;
mod kernels;
mod library;
mod memory;
mod ordered;
mod parted;
mod status;
mod stream;
mod unified;

pub(super) use driver::{CudaDriver, PinnedDriver, device_count};
