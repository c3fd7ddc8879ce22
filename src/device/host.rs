//! The host as a device: its memory is read in place, and its copies are plain ones.

use std::ptr;
use std::sync::Arc;

use tensorhold_allocator::{HostMemory, Memory};

use super::{DeviceKind, Driver, Stream};
use crate::error::Result;

#[derive(Debug)]
pub(super) struct HostDriver {
    memory: Arc<HostMemory>,
}

impl HostDriver {
    pub(super) fn new() -> Self {
        Self { memory: Arc::new(HostMemory::new()) }
    }
}

// SAFETY: Q1, Q2: all of it is host memory, and plain copies take its addresses. Q3: copies end before they return. Q4: it is host-accessible.
unsafe impl Driver for HostDriver {
    fn name(&self) -> &str {
        "host"
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Host
    }

    fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.memory) as Arc<dyn Memory>
    }

    fn staging_memory(&self) -> Arc<dyn Memory> {
        self.memory()
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(HostStream))
    }
}

/// Copies at once: whatever is waited for has ended.
#[derive(Debug)]
pub(super) struct HostStream;

// SAFETY: T1: plain copies of the ranges that are given. T2, T3: they end before they return.
unsafe impl Stream for HostStream {
    unsafe fn copy_to_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: the caller promises both ranges, and that nothing else writes them, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes as usize) };
        Ok(())
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.copy_to_device(to, from, bytes) }
    }

    unsafe fn copy_on_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.copy_to_device(to, from, bytes) }
    }

    fn record(&self, _event: usize) -> Result<()> {
        Ok(())
    }

    fn wait(&self, _event: usize) -> Result<()> {
        Ok(())
    }

    fn has_passed(&self, _event: usize) -> Result<bool> {
        Ok(true)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
