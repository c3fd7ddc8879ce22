//! Device memory that is exported by handles, and what refuses to be.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use cudarc::driver::sys::{
    self, CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationHandleType, CUmemLocation,
    CUmemLocationType, CUresult,
};
use libtest_mimic::Failed;
use tensorhold::allocator::{Pool, RegionParts};
use tensorhold::{Device, HandleTypes, Loader};

use crate::support::{assert_holds, bytes_tensor, on_disk};
use crate::{free_bytes, used_device};

fn ok(status: CUresult) {
    assert_eq!(status, CUresult::CUDA_SUCCESS);
}

fn posix() -> HandleTypes {
    HandleTypes::default().with_posix_fd()
}

pub(crate) fn weights_are_read_by_the_handles_of_their_memory() -> Result<(), Failed> {
    let device = used_device();
    let tensors = [bytes_tensor("large", 16 << 20), bytes_tensor("small", 1000)];
    let (_folder, path) = on_disk(&tensors);
    let read = || -> Result<(), Failed> {
        let memory = device.memory_with(posix())?;
        let pool = Pool::builder(memory).region_parts(RegionParts::Require).build()?;
        let weights = Loader::new(device.clone()).files([&path]).pool(&pool).load()?;
        assert_holds(&weights, &tensors);
        let large = weights.view("large")?;
        // A tensor that is whole units has memory of its own.
        assert!(by_descriptor(&device, large.as_ptr() as CUdeviceptr, 16 << 20) == tensors[0].bytes);
        weights.close();
        pool.trim();
        Ok(())
    };
    // The driver keeps something for good when memory is first imported.
    read()?;
    let before = free_bytes(&device);
    read()?;
    assert_eq!(free_bytes(&device), before);
    Ok(())
}

/// The memory behind an address, which is so long, as one who was given a file descriptor for it sees it.
fn by_descriptor(device: &Device, address: CUdeviceptr, size: usize) -> Vec<u8> {
    let _current = device.make_current().unwrap();
    let (mut kept, mut imported, mut fd, mut start) = (0, 0, -1_i32, 0);
    let mut bytes = vec![0; size];
    let mut access = CUmemAccessDesc {
        // SAFETY: numbers, and an enum that has a 0.
        location: unsafe { std::mem::zeroed::<CUmemLocation>() },
        flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    // Device 0, whose number is 0 already.
    access.location.type_ = CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let kind = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    // SAFETY: the context is current; all outputs are valid for the writes; the address is of memory that is mapped, and what is
    // made here is taken apart again.
    unsafe {
        ok(sys::cuMemRetainAllocationHandle(&mut kept, address as *mut c_void));
        ok(sys::cuMemExportToShareableHandle((&raw mut fd).cast(), kept, kind, 0));
        let fd = OwnedFd::from_raw_fd(fd);
        ok(sys::cuMemImportFromShareableHandle(&mut imported, fd.as_raw_fd() as usize as *mut c_void, kind));
        ok(sys::cuMemAddressReserve(&mut start, size, 0, 0, 0));
        ok(sys::cuMemMap(start, size, 0, imported, 0));
        ok(sys::cuMemSetAccess(start, size, &access, 1));
        ok(sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), start, size));
        ok(sys::cuMemUnmap(start, size));
        ok(sys::cuMemAddressFree(start, size));
        ok(sys::cuMemRelease(imported));
        ok(sys::cuMemRelease(kept));
    }
    bytes
}

pub(crate) fn handles_that_are_refused_are_an_error_that_names_them() -> Result<(), Failed> {
    let device = used_device();
    drop(device.memory_with(posix())?);
    let before = free_bytes(&device);
    for handles in [posix(), posix().with_rdma(), HandleTypes::default().with_fabric(), posix().with_fabric()]
    {
        match device.memory_with(handles) {
            Ok(memory) => assert_eq!(memory.name(), device.memory().name()),
            Err(error) => {
                let message = error.to_string();
                eprintln!("{message}");
                assert!(handles.fabric || handles.rdma, "file descriptors are refused: {message}");
                assert!(
                    message.contains("make memory that can be exported on device \"cuda:0\""),
                    "{message}"
                );
            }
        }
        assert_eq!(free_bytes(&device), before);
    }
    let message = Device::cuda_unified(0)?.memory_with(posix()).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("shared with the CPU"), "{message}");
    Ok(())
}
