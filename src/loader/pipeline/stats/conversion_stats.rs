//! [`ConversionStats`]: the number of values out of range, and of NaN, that conversions find.
//!
//! The CPU and the device have counters of their own, which are added up at the end.

use std::sync::atomic::{AtomicU64, Ordering};

use tensorhold_allocator::{Fragment, Pool, Request};

use crate::device::Device;
use crate::error::Result;
use crate::loader::transform::TensorTransforms;
use crate::report::Converted;

/// The counters of a load: two for each transformed tensor.
#[derive(Debug)]
pub(crate) struct ConversionStats {
    on_cpu: Vec<AtomicU64>,
    on_device: Option<DeviceCounters>,
}

/// Counters in a device's memory.
#[derive(Debug)]
struct DeviceCounters {
    device: Device,
    counters: Fragment,
}

/// Counters for each tensor.
const COUNTERS: usize = 2;

impl ConversionStats {
    /// Counters set to zero.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub(crate) fn open(device: &Device, transforms: &TensorTransforms) -> Result<Self> {
        let count = COUNTERS * transforms.tensors.len();
        let on_cpu = (0..count).map(|_| AtomicU64::new(0)).collect();
        let on_device =
            (transforms.on_device && count > 0).then(|| DeviceCounters::open(device, count)).transpose()?;
        Ok(Self { on_cpu, on_device })
    }

    /// The CPU's counters of a transformed tensor.
    pub(crate) fn on_cpu(&self, index: usize) -> Option<*mut u64> {
        self.on_cpu.get(COUNTERS * index).map(AtomicU64::as_ptr)
    }

    /// The device's counters of a transformed tensor.
    pub(crate) fn on_device(&self, index: usize) -> Option<*mut u64> {
        let counters = self.on_device.as_ref()?.counters.as_ptr().cast_mut().cast::<u64>();
        Some(counters.wrapping_add(COUNTERS * index))
    }

    /// The tensors with values out of range or NaN. Called after everything has landed.
    pub(crate) fn read(&self, transforms: &TensorTransforms) -> Result<Vec<Converted>> {
        let on_device = self.on_device.as_ref().map_or(Ok(Vec::new()), DeviceCounters::read)?;
        let counter = |n: usize| {
            let on_cpu = self.on_cpu.get(n).map_or(0, |counter| counter.load(Ordering::Relaxed));
            on_cpu + on_device.get(n).copied().unwrap_or(0)
        };
        let tensors = transforms.tensors.iter().enumerate().map(|(n, (_, index))| Converted {
            name: index.name.clone(),
            out_of_range: counter(COUNTERS * n),
            nan: counter(COUNTERS * n + 1),
        });
        Ok(tensors.filter(|tensor| tensor.out_of_range > 0 || tensor.nan > 0).collect())
    }
}

impl DeviceCounters {
    fn open(device: &Device, count: usize) -> Result<Self> {
        let pool = Pool::builder(device.memory()).name(format!("counters on {device}")).build()?;
        let request = Request::new((count * size_of::<u64>()) as u64, 256);
        let opened =
            Self { device: device.clone(), counters: pool.place("counters of conversions", request)? };
        device.run(vec![0_u64; count], |stream, zeroes| {
            let to = opened.counters.as_ptr().cast_mut();
            // SAFETY: Q1: the target is in the device's memory. Source and target have one length and no
            // other users; `run` keeps the source until the copy has ended, and the target's pool
            // synchronizes it before it is reused (Q3).
            unsafe { stream.copy_to_device(to, zeroes.as_ptr().cast(), opened.counters.len()) }
        })?;
        Ok(opened)
    }

    fn read(&self) -> Result<Vec<u64>> {
        let counters = vec![0_u64; self.counters.len() as usize / size_of::<u64>()];
        self.device.run(counters, |stream, counters| {
            // SAFETY: as above, in the other direction. All transforms have ended.
            unsafe {
                stream.copy_to_host(counters.as_mut_ptr().cast(), self.counters.as_ptr(), self.counters.len())
            }
        })
    }
}
