//! Knowing that this is a forked child.
//!
//! A child has its parent's memory but not its threads, so what waits for a thread of the parent would wait for good, and a CUDA context is of no
//! use there. What a child may do: read tensors in host memory that the parent loaded, drop anything, and load on its own onto the CPU.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::prelude::*;

use crate::errors::{self, Kind};

/// The process in which something was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u32);

/// The process that first used CUDA, 0 while none has.
static CUDA: AtomicU32 = AtomicU32::new(0);

impl Process {
    pub(crate) fn current() -> Self {
        Self(process::id())
    }

    pub(crate) fn is_current(self) -> bool {
        self == Self::current()
    }

    /// Refuses in a child of that process.
    pub(crate) fn check(self, py: Python<'_>, operation: &str) -> PyResult<()> {
        if self.is_current() {
            return Ok(());
        }
        let message = format!(
            "{operation}: it belongs to process {}, and this one, {}, was forked from it without the threads that serve it; \
             load in the child, or start it by multiprocessing's \"spawn\"",
            self.0,
            process::id()
        );
        Err(errors::new(py, Kind::Fork, message))
    }

    /// Says that this process uses CUDA, and refuses if it was forked from one that did.
    pub(crate) fn use_cuda(py: Python<'_>, device: &str) -> PyResult<()> {
        let here = process::id();
        match CUDA.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(first) if first == here => Ok(()),
            Err(first) => {
                let message = format!(
                    "open device {device}: this process was forked from {first}, which had used CUDA, and a forked child cannot; \
                     start it by multiprocessing's \"spawn\", or load onto the CPU"
                );
                Err(errors::new(py, Kind::Fork, message))
            }
        }
    }
}
