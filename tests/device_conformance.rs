//! The devices of this machine pass the suite for devices; those of a GPU machine do so in `tests/gpu.rs`.

mod support;

use support::{device, staged_host};
use tensorhold::{Device, DeviceKind, Error, HandleTypes};

#[test]
fn the_host_conforms() {
    device::conforms(&Device::host());
}

#[test]
fn a_driver_from_outside_conforms() {
    device::conforms(&staged_host::device());
    device::conforms(&staged_host::device_with_transforms());
}

#[test]
fn without_a_gpu_cuda_devices_are_an_error_that_says_what_to_install() {
    for (name, opened) in [("cuda:0", Device::cuda(0)), ("pinned", Device::pinned())] {
        match opened {
            Ok(device) => assert!(Device::cuda_count() > 0 && device.kind() != DeviceKind::Host),
            Err(Error::Device { device, detail, remedy, .. }) => {
                assert_eq!(device, name);
                assert!(
                    !detail.is_empty() && remedy.to_string().contains("Device::host()"),
                    "{detail}; {remedy}"
                );
                assert_eq!(Device::cuda_count(), 0);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn the_host_has_no_peers() {
    let message = Device::host().enable_peer_access(&Device::host()).unwrap_err().to_string();
    assert!(message.contains("not a peer") && message.contains("copy through host memory"), "{message}");
}

#[test]
fn memory_with_no_handles_is_plain_and_the_host_has_none() {
    let device = Device::host();
    assert_eq!(device.memory_with(HandleTypes::default()).unwrap().name(), device.memory().name());
    for handles in [
        HandleTypes::default().with_posix_fd(),
        HandleTypes::default().with_fabric(),
        HandleTypes::default().with_rdma(),
    ] {
        let message = device.memory_with(handles).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("host") && message.contains("no handles of memory"), "{message}");
        assert!(message.contains("use a CUDA device"), "{message}");
    }
}
