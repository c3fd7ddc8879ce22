//! A device that shares memory with the CPU, for which page-locked and mapped memory stands in where there is none such.

use cudarc::driver::{CudaContext, sys};
use libtest_mimic::Failed;
use tensorhold::allocator::Pool;
use tensorhold::{Device, DeviceKind, HandleTypes, Loader};

use crate::driver::check;
use crate::support::{assert_all_back, assert_holds, on_disk};
use crate::{free_bytes, tensors, used_device};

pub(crate) fn the_unified_device_conforms() -> Result<(), Failed> {
    crate::support::device::conforms(&Device::cuda_unified(0)?);
    Ok(())
}

pub(crate) fn unified_memory_is_filled_in_place_and_read_by_the_device() -> Result<(), Failed> {
    let (device, unified, tensors) = (used_device(), Device::cuda_unified(0)?, tensors());
    let (_folder, path) = on_disk(&tensors);
    let before = free_bytes(&device);
    let weights = Loader::new(unified.clone()).files([&path]).load()?;
    assert_eq!(unified.kind(), DeviceKind::Cuda(0));
    assert_holds(&weights, &tensors);
    let report = weights.report();
    let choice = report.choices.iter().find(|choice| choice.about == "path").ok_or("no path")?;
    assert_eq!((choice.picked.as_str(), report.staging_bytes), ("in place", 0));
    for spec in tensors.iter().filter(|spec| !spec.bytes.is_empty()) {
        let view = weights.view(&spec.name)?;
        // The CPU reads it where it is,
        assert!(view.as_bytes()? == spec.bytes, "{}", spec.name);
        // and the device at the same address: into memory of its own, and from there back.
        let (_current, bytes, mut back) =
            (unified.make_current()?, spec.bytes.len(), vec![0_u8; spec.bytes.len()]);
        let mut own = 0;
        // SAFETY: the context is current; the view and the buffers outlive the copies, which have ended when the calls return.
        unsafe {
            check("allocate", sys::cuMemAlloc_v2(&mut own, bytes));
            check("copy on the device", sys::cuMemcpyDtoD_v2(own, view.as_ptr() as u64, bytes));
            check("copy to the host", sys::cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), own, bytes));
            check("free", sys::cuMemFree_v2(own));
        }
        assert!(back == spec.bytes, "the device read other bytes of {}", spec.name);
    }
    assert_eq!(free_bytes(&device), before, "the stand-in takes memory of the device");
    let pool = weights.pool().clone();
    weights.close();
    assert_all_back(&pool);
    Ok(())
}

/// The two have one name, and are one device's: no pool over the one takes the tensors of the other.
pub(crate) fn the_devices_own_memory_and_what_it_shares_are_two() -> Result<(), Failed> {
    let (own, unified) = (Device::cuda(0)?, Device::cuda_unified(0)?);
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    assert_eq!(own.name(), unified.name());
    if !own.is_host_accessible() {
        for (device, other) in [(&own, &unified), (&unified, &own)] {
            let pool = Pool::builder(other.memory()).build()?;
            let loaded = Loader::new(device.clone()).files([&path]).pool(&pool).load();
            let message = loaded.map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("option pool") && message.contains("cannot access"), "{message}");
        }
        // Work that is enqueued through cudarc may write for longer than the slice lives, while the CPU reads.
        let weights = Loader::new(unified.clone()).files([&path]).load()?;
        let stream = CudaContext::new(0)?.new_stream()?;
        let name = weights.names().next().ok_or("no tensor")?;
        let message = weights.view(name)?.lend_bytes(&stream).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("that the CPU shares"), "{message}");
    }
    // Another handle on the device, and memory of it that can be exported, are the same.
    let posix = own.memory_with(HandleTypes::default().with_posix_fd());
    for memory in [Device::cuda(0)?.memory(), posix.unwrap_or_else(|_| own.memory())] {
        let pool = Pool::builder(memory).build()?;
        assert_holds(&Loader::new(own.clone()).files([&path]).pool(&pool).load()?, &tensors);
    }
    let pinned = [Device::pinned()?, Device::pinned()?].map(|device| device.memory().id());
    assert!(pinned[0] == pinned[1] && pinned[0] != own.staging_memory().id());
    Ok(())
}
