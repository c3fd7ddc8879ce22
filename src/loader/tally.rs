//! Counting what conversions meet: values out of range, and NaN.
//!
//! The CPU adds to counters of its own, a device to some in its memory; in the end both are summed.

use std::sync::atomic::{AtomicU64, Ordering};

use tensorhold_allocator::{Fragment, Pool, Request};

use super::change::Changes;
use crate::device::Device;
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
        device.run(vec![0_u64; count], |stream, zeroes| {
            let to = opened.counters.as_ptr().cast_mut();
            // SAFETY: Q1: the target is in the device's memory. Both are as long, and no one else's; `run` keeps the source until the copy has ended, and the
            // target's pool synchronizes it before it is used again (Q3).
            unsafe { stream.copy_to_device(to, zeroes.as_ptr().cast(), opened.counters.len()) }
        })?;
        Ok(opened)
    }

    fn read(&self) -> Result<Vec<u64>> {
        let counters = vec![0_u64; self.counters.len() as usize / size_of::<u64>()];
        self.device.run(counters, |stream, counters| {
            // SAFETY: as above, the other way round; what added to the counters has ended.
            unsafe {
                stream.copy_to_host(counters.as_mut_ptr().cast(), self.counters.as_ptr(), self.counters.len())
            }
        })
    }
}
