//! Pools in Python.

use pyo3::prelude::*;
use tensorhold::allocator::{RegionParts, Stats};
use tensorhold::{Device, Pool};

use crate::arguments::{self, Whole};
use crate::device;
use crate::errors::raise;
use crate::pickle::{self, Reduced};
use crate::process::Process;

/// A pool's numbers at one moment, in bytes but for `fragments` and `regions`.
#[pyclass(name = "Stats", module = "tensorhold", frozen)]
pub(crate) struct PyStats(Numbers);

macro_rules! stats {
    ($($field:ident: $type:ty,)*) => {
        /// The same numbers as [`Stats`], which only a pool makes.
        struct Numbers {
            $($field: $type,)*
        }

        impl From<Stats> for PyStats {
            fn from(stats: Stats) -> Self {
                Self(Numbers { $($field: stats.$field,)* })
            }
        }

        impl PyStats {
            /// Those that a pickle has.
            pub(crate) fn restored(($($field,)*): ($($type,)*)) -> Self {
                Self(Numbers { $($field,)* })
            }
        }

        #[pymethods]
        impl PyStats {
            $(#[getter]
            fn $field(&self) -> $type {
                self.0.$field
            })*

            fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
                pickle::reduce(py, "Stats", ($(self.0.$field,)*))
            }

            fn __repr__(&self) -> String {
                let fields = [$((stringify!($field), self.0.$field as u64)),*];
                let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                format!("Stats({})", fields.join(", "))
            }
        }
    };
}

stats! {
    reserved_bytes: u64,
    live_bytes: u64,
    pending_bytes: u64,
    free_bytes: u64,
    largest_free_bytes: u64,
    high_water_bytes: u64,
    lost_bytes: u64,
    fragments: usize,
    regions: usize,
}

/// Memory of a device that several loads share, with its limit and statistics.
#[pyclass(name = "Pool", module = "tensorhold", frozen)]
pub(crate) struct PyPool {
    pub(crate) pool: Pool,
    device: Device,
    process: Process,
}

impl PyPool {
    /// A pool over the memory of the device that is named.
    pub(crate) fn of(py: Python<'_>, pool: Pool, device: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        Ok(Self { pool, device: device::open(py, device)?, process: Process::current() })
    }

    /// The device whose memory it is over.
    pub(crate) fn opened(&self) -> &Device {
        &self.device
    }

    /// Refuses in a forked child, where no reaper serves the pool.
    pub(crate) fn check(&self, py: Python<'_>, operation: &str) -> PyResult<()> {
        self.process.check(py, operation)
    }
}

#[pymethods]
impl PyPool {
    /// `parts`: whether a tensor's memory goes back to the device with the tensor, though its neighbours in the region
    /// live: None, where the device can; True, or it is an error; False, never.
    #[new]
    #[pyo3(
        signature = (device=None, *, limit_bytes=None, parts=None, retain_bytes=None, name=None),
        text_signature = "(device=None, *, limit_bytes=None, parts=None, retain_bytes=0, name=None)"
    )]
    fn new(
        py: Python<'_>,
        device: Option<&Bound<'_, PyAny>>,
        limit_bytes: Option<&Bound<'_, PyAny>>,
        parts: Option<&Bound<'_, PyAny>>,
        retain_bytes: Option<&Bound<'_, PyAny>>,
        name: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let number = |name: &str, value: &Bound<'_, PyAny>| {
            arguments::number::<u64>(&format!("argument {name} of Pool"), value, &Whole::OPTION)
        };
        let limit_bytes = limit_bytes.map(|value| number("limit_bytes", value)).transpose()?;
        let retain_bytes = retain_bytes.map_or(Ok(0), |value| number("retain_bytes", value))?;
        let parts = parts.map(|value| arguments::flag("argument parts of Pool", value)).transpose()?;
        let name = name.map(|name| arguments::text("argument name of Pool", name, "a str")).transpose()?;
        let device = device::open(py, device)?;
        let parts = match parts {
            Some(true) => RegionParts::Require,
            Some(false) => RegionParts::Whole,
            None => RegionParts::Auto,
        };
        let name = name.as_deref().unwrap_or(device::name(&device));
        let mut builder =
            Pool::builder(device.memory()).name(name).retain_bytes(retain_bytes).region_parts(parts);
        if let Some(bytes) = limit_bytes {
            builder = builder.limit_bytes(bytes);
        }
        let pool = py.detach(|| builder.build()).map_err(|error| raise(py, error.into()))?;
        Ok(Self { pool, device, process: Process::current() })
    }

    #[getter]
    fn name(&self) -> &str {
        self.pool.name()
    }

    #[getter]
    fn device(&self) -> &str {
        device::name(&self.device)
    }

    /// Whether regions are given back in parts.
    #[getter]
    fn parts(&self) -> bool {
        self.pool.is_parted()
    }

    fn stats(&self, py: Python<'_>) -> PyResult<PyStats> {
        self.check(py, "ask a pool for its numbers")?;
        Ok(py.detach(|| self.pool.stats()).into())
    }

    /// Gives back what is free, and waits until that is done.
    fn trim(&self, py: Python<'_>) -> PyResult<()> {
        self.check(py, "trim a pool")?;
        py.detach(|| self.pool.trim());
        Ok(())
    }

    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse("a Pool", "it is memory of this process; make another in the process that needs one")
    }

    fn __repr__(&self) -> String {
        format!("Pool({:?}, {})", self.pool.name(), device::name(&self.device))
    }
}
