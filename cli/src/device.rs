//! Which device to load to.

use std::str::FromStr;

use tensorhold::Device;

/// A device as it is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Host,
    Pinned,
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cuda = || text.strip_prefix("cuda:")?.parse().ok();
        match text {
            "cpu" | "host" => Ok(Self::Host),
            "pinned" => Ok(Self::Pinned),
            _ => {
                cuda().map(Self::Cuda).ok_or_else(|| "expected cpu, pinned or cuda:N, such as cuda:0".into())
            }
        }
    }
}

/// A device, and why it is this one.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) device: Device,
    pub(crate) why: String,
}

/// Opens the device that was asked for, or the best there is.
pub(crate) fn choose(asked: Option<DeviceName>) -> tensorhold::Result<Chosen> {
    let device = match asked {
        Some(DeviceName::Host) => Device::host(),
        Some(DeviceName::Pinned) => Device::pinned()?,
        Some(DeviceName::Cuda(ordinal)) => Device::cuda(ordinal)?,
        None => {
            return Ok(match Device::cuda(0) {
                Ok(device) => Chosen { device, why: "the first CUDA device".into() },
                Err(error) => Chosen { device: Device::host(), why: format!("no CUDA: {}", error.reason()) },
            });
        }
    };
    Ok(Chosen { device, why: "as asked".into() })
}

/// The devices that there are, and if CUDA is not among them, why.
pub(crate) fn found() -> String {
    let mut names = vec!["host".to_owned()];
    if Device::pinned().is_ok() {
        names.push("pinned".into());
    }
    names.extend((0..Device::cuda_count()).map(|ordinal| format!("cuda:{ordinal}")));
    match Device::cuda(0) {
        Ok(_) => names.join(", "),
        Err(error) => format!("{} (no CUDA: {})", names.join(", "), error.reason()),
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceName, choose};

    #[test]
    fn devices_have_names() {
        let names = ["cpu", "host", "pinned", "cuda:0", "cuda:12"].map(str::parse);
        let host = Ok(DeviceName::Host);
        let expected =
            [host.clone(), host, Ok(DeviceName::Pinned), Ok(DeviceName::Cuda(0)), Ok(DeviceName::Cuda(12))];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        for wrong in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let error = wrong.parse::<DeviceName>().unwrap_err();
            assert!(error.contains("cpu, pinned or cuda:N"), "{error}");
        }
    }

    #[test]
    fn there_is_always_a_device_and_a_reason() {
        assert!(!choose(None).unwrap().why.is_empty());
    }
}
