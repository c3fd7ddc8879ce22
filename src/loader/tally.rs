//! Counting what conversions meet: values out of range, and NaN.
//!
//! The CPU adds to counters of its own, a device to some in its memory; in the end both are summed.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};

use tensorhold_allocator::{Fragment, Pool, Request};

use super::change::Changes;
use crate::device::{Device, Stream};
use crate::error::Result;
use crate::report::Converted;

/// The counters of a load: two for each changed tensor.
#[derive(Debug)]
pub(super) struct Tally {
    on_cpu: Vec<AtomicU64>,
    on_device: Option<OnDevice>,
}

/// Counters in a device's memory.
#[derive(Debug)]
struct OnDevice {
    device: Device,
    counters: Fragment,
}

/// Counters of a tensor.
const COUNTERS: usize = 2;

impl Tally {
    /// Counters that are zero.
    pub(super) fn open(device: &Device, changes: &Changes) -> Result<Self> {
        let count = COUNTERS * changes.changed.len();
        let on_cpu = (0..count).map(|_| AtomicU64::new(0)).collect();
        let on_device =
            (changes.on_device && count > 0).then(|| OnDevice::open(device, count)).transpose()?;
        Ok(Self { on_cpu, on_device })
    }

    /// The counters of a changed tensor, for the CPU.
    pub(super) fn on_cpu(&self, change: usize) -> Option<*mut u64> {
        self.on_cpu.get(COUNTERS * change).map(AtomicU64::as_ptr)
    }

    /// The same for the device.
    pub(super) fn on_device(&self, change: usize) -> Option<*mut u64> {
        let counters = self.on_device.as_ref()?.counters.as_ptr().cast_mut().cast::<u64>();
        Some(counters.wrapping_add(COUNTERS * change))
    }

    /// The tensors that lost something. Everything has landed.
    pub(super) fn read(&self, changes: &Changes) -> Result<Vec<Converted>> {
        let on_device = self.on_device.as_ref().map_or(Ok(Vec::new()), OnDevice::read)?;
        let counter = |n: usize| {
            let on_cpu = self.on_cpu.get(n).map_or(0, |counter| counter.load(Ordering::Relaxed));
            on_cpu + on_device.get(n).copied().unwrap_or(0)
        };
        let tensors = changes.changed.iter().enumerate().map(|(n, (_, change))| Converted {
            name: change.name.clone(),
            out_of_range: counter(COUNTERS * n),
            nan: counter(COUNTERS * n + 1),
        });
        Ok(tensors.filter(|tensor| tensor.out_of_range > 0 || tensor.nan > 0).collect())
    }
}

impl OnDevice {
    fn open(device: &Device, count: usize) -> Result<Self> {
        let pool = Pool::builder(device.memory()).name(format!("counters on {device}")).build()?;
        let request = Request::new((count * size_of::<u64>()) as u64, 256);
        let opened =
            Self { device: device.clone(), counters: pool.place("counters of conversions", request)? };
        opened.with_stream(|stream, zeroes| {
            // SAFETY: both are as long, and no one else's; they stay until the stream has been synchronized.
            unsafe {
                stream.copy_to_device(
                    opened.counters.as_ptr().cast_mut(),
                    zeroes.as_ptr().cast(),
                    opened.counters.len(),
                )
            }
        })?;
        Ok(opened)
    }

    fn read(&self) -> Result<Vec<u64>> {
        self.with_stream(|stream, counters| {
            // SAFETY: as above; what added to the counters has ended.
            unsafe {
                stream.copy_to_host(counters.as_mut_ptr().cast(), self.counters.as_ptr(), self.counters.len())
            }
        })
    }

    /// Copies from or to a buffer as long as the counters, of zeroes at first, and waits for it, after an error too. Returns the buffer.
    fn with_stream(&self, copy: impl FnOnce(&dyn Stream, &mut [u64]) -> Result<()>) -> Result<Vec<u64>> {
        let stream = self.device.take_stream()?;
        // I1: until the stream says that the copy has ended the buffer stays: for ever, if it fails to say so, or panics.
        let mut buffer = ManuallyDrop::new(vec![0; self.counters.len() as usize / size_of::<u64>()]);
        let copied = copy(&*stream, &mut buffer);
        stream.synchronize()?;
        let buffer = ManuallyDrop::into_inner(buffer);
        copied?;
        self.device.keep_stream(stream);
        Ok(buffer)
    }
}
