//! [`Transform`]: what becomes of a tensor's bytes on their way from staging memory to their place.

use std::sync::atomic::{AtomicU64, Ordering};

use tensorhold_kernels::{self as kernels, Block, Conversion, Counts};

use crate::error::{Error, Result};

/// A conversion or a gather of elements from one place to another, each element once (I2).
#[derive(Debug, Clone, Copy)]
pub struct Transform {
    /// From which type to which. Without one, bytes are copied as they are.
    pub conversion: Option<Conversion>,
    /// Which elements, and where they go; bytes where nothing is converted.
    pub block: Block,
    /// Where the source begins; at any address.
    pub source: *const u8,
    /// How long the source is.
    pub source_bytes: u64,
    /// Where the target begins, at a multiple of the size of its elements.
    pub target: *mut u8,
    /// How long the target is.
    pub target_bytes: u64,
    /// Two counters, to which are added the numbers of values out of range and of NaN, if that is asked for; see
    /// [`Counts`]. At a multiple of 8.
    pub counters: Option<*mut u64>,
}

impl Transform {
    /// Does it on the CPU, now: the reference of what a device does, bit for bit.
    ///
    /// # Errors
    /// When the block does not fit the source or the target, or they are no whole numbers of elements.
    ///
    /// # Safety
    /// `source` is valid for reads and `target` for writes of as many bytes as is said, and their bytes have values; nothing else writes the
    /// source, or touches the block's place in the target. The two do not overlap. The counters are valid for atomic additions.
    pub unsafe fn on_cpu(&self) -> Result<()> {
        // SAFETY: the caller promises the source.
        let source = unsafe { std::slice::from_raw_parts(self.source, self.source_bytes as usize) };
        // SAFETY: the caller promises the target, which does not overlap the source.
        let target = unsafe { std::slice::from_raw_parts_mut(self.target, self.target_bytes as usize) };
        let Self { conversion, block, counters, .. } = self;
        match (conversion, counters) {
            (None, _) => kernels::gather(1, block, source, target),
            (Some(conversion), None) => conversion.gather(block, source, target),
            (Some(conversion), Some(counters)) => {
                conversion.gather_counted(block, source, target).map(|counts| {
                    // SAFETY: the caller promises the counters.
                    unsafe { add(*counters, counts) };
                })
            }
        }
        .map_err(|error| self.refused("host", &error))
    }

    /// What it is called in errors.
    pub(crate) fn operation(&self) -> &'static str {
        if self.conversion.is_some() { "convert" } else { "gather" }
    }

    /// The error for one that is not as it should be.
    pub(crate) fn refused(&self, device: &str, error: &kernels::Error) -> Error {
        Error::Device {
            device: device.into(),
            operation: self.operation(),
            detail: error.to_string(),
            remedy: "give a block that lies in its source and its target".into(),
        }
    }
}

/// Adds to two counters.
///
/// # Safety
/// They are valid for atomic additions.
unsafe fn add(counters: *mut u64, counts: Counts) {
    for (n, count) in
        [counts.out_of_range, counts.nan].into_iter().enumerate().filter(|(_, count)| *count > 0)
    {
        // SAFETY: the caller promises both.
        let counter = unsafe { AtomicU64::from_ptr(counters.add(n)) };
        counter.fetch_add(count, Ordering::Relaxed);
    }
}
