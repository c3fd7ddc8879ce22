//! Devices by their names in Python: `cpu`, `pinned`, `cuda` and `cuda:N`.

use pyo3::prelude::*;
use pyo3::types::PyBool;
use tensorhold::allocator::Quoted;
use tensorhold::{Device, DeviceKind};

use crate::errors::{self, Kind, raise};
use crate::process::Process;

/// Opens the device that a string, a number or an object such as a `torch.device` names; the CPU where there is none.
pub(crate) fn open(py: Python<'_>, named: Option<&Bound<'_, PyAny>>) -> PyResult<Device> {
    let Some(named) = named else { return Ok(Device::host()) };
    match parse(py, named)? {
        DeviceKind::Pinned => {
            Process::use_cuda(py, "pinned")?;
            py.detach(Device::pinned).map_err(|error| raise(py, error))
        }
        DeviceKind::Cuda(ordinal) => {
            Process::use_cuda(py, &format!("cuda:{ordinal}"))?;
            py.detach(|| Device::cuda(ordinal)).map_err(|error| raise(py, error))
        }
        _ => Ok(Device::host()),
    }
}

fn parse(py: Python<'_>, named: &Bound<'_, PyAny>) -> PyResult<DeviceKind> {
    // Of NumPy's types, too.
    let is_number = named.hasattr("__index__")? && !named.is_instance_of::<PyBool>();
    if is_number && let Ok(ordinal) = named.extract::<u16>() {
        return Ok(DeviceKind::Cuda(ordinal.into()));
    }
    let spelled = named.str()?.to_string();
    Ok(match &*spelled {
        "cpu" | "cpu:0" => DeviceKind::Host,
        "pinned" => DeviceKind::Pinned,
        "cuda" => DeviceKind::Cuda(0),
        other => {
            let ordinal =
                other.strip_prefix("cuda:").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            let Some(ordinal) = ordinal.and_then(|digits| digits.parse::<u16>().ok()) else {
                let message = format!(
                    "option device: got {}, expected \"cpu\", \"pinned\", \"cuda\" or \"cuda:N\"; \
                     name a device of this machine",
                    Quoted(&spelled)
                );
                return Err(errors::new(py, Kind::Option, message));
            };
            DeviceKind::Cuda(ordinal.into())
        }
    })
}

/// What Python calls a device.
pub(crate) fn name(device: &Device) -> &str {
    match device.kind() {
        DeviceKind::Host => "cpu",
        _ => device.name(),
    }
}

/// The name of the device that is named, without a look at whether it is there; that of the CPU where none is named.
pub(crate) fn spelled(py: Python<'_>, named: Option<&Bound<'_, PyAny>>) -> PyResult<String> {
    let Some(named) = named else { return Ok("cpu".into()) };
    Ok(match parse(py, named)? {
        DeviceKind::Pinned => "pinned".into(),
        DeviceKind::Cuda(ordinal) => format!("cuda:{ordinal}"),
        _ => "cpu".into(),
    })
}
