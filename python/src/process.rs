//! Knowing that this is a forked child.
//!
//! A child has its parent's memory but not its threads, so what waits for a thread of the parent would wait for good, and a CUDA context is of no
//! use there. What a child may do: read tensors in host memory that the parent loaded, drop and close anything, and load on its own onto the CPU. What
//! belongs to the parent is refused before a lock is taken that a thread of the parent may have held.

use std::process;
use std::sync::OnceLock;

use pyo3::prelude::*;
use tensorhold::allocator;

use crate::errors::{self, Kind};

/// The process in which something was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(allocator::Process);

/// The process that first used CUDA. Set while the interpreter is held, as forks are made, so no child finds it half set.
static CUDA: OnceLock<Process> = OnceLock::new();

impl Process {
    pub(crate) fn current() -> Self {
        Self(allocator::Process::current())
    }

    pub(crate) fn is_current(self) -> bool {
        self.0.is_current()
    }

    /// Refuses in a child of that process.
    pub(crate) fn check(self, py: Python<'_>, operation: &str) -> PyResult<()> {
        if self.is_current() {
            return Ok(());
        }
        let message = format!(
            "{operation}: it belongs to the process that this one, {}, was forked from, without the threads that serve it; \
             load in the child, or start it by multiprocessing's \"spawn\"",
            process::id()
        );
        Err(errors::new(py, Kind::Fork, message))
    }

    /// Says that this process uses CUDA, and refuses if it was forked from one that did.
    pub(crate) fn use_cuda(py: Python<'_>, device: &str) -> PyResult<()> {
        if CUDA.get_or_init(Self::current).is_current() {
            return Ok(());
        }
        let message = format!(
            "open device {device}: this process, {}, was forked from one that had used CUDA, and a forked child cannot; \
             start it by multiprocessing's \"spawn\", or load onto the CPU",
            process::id()
        );
        Err(errors::new(py, Kind::Fork, message))
    }
}
