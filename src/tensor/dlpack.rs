//! Tensors as DLPack's: what other libraries take without a copy.
//!
//! A managed tensor owns a [`Tensor`], so it keeps that tensor's bytes alive and no others. Its deleter drops the tensor, on whatever thread and at
//! whatever time: without a lock of the allocator or a call of the driver, and without any effect in a forked child. A consumer's uses are not
//! recorded, so the memory is used again only after the device's work has ended (I1).
//!
//! Structures and their deleters are those of the crate [`dlpark`]; the numbers are those of DLPack 1.3.

use dlpark::ffi::{DLDataType, DLDevice, DLDeviceType};
use dlpark::metadata::Dynamic;
use dlpark::{DlpackFlags, Managed, ManagedTensorBase, legacy, versioned};

use super::{Tensor, TensorView};
use crate::device::DeviceKind;
use crate::dtype::DType;
use crate::error::{Remedy, Result};

impl DType {
    /// What DLPack calls it. Types of fewer than 8 bits are packed there as they are in files.
    pub fn dlpack(self) -> DLDataType {
        match self {
            Self::BOOL => DLDataType::BOOL,
            Self::F4 => DLDataType::F4E2M1FN,
            Self::F6_E2M3 => DLDataType::F6E2M3FN,
            Self::F6_E3M2 => DLDataType::F6E3M2FN,
            Self::U8 => DLDataType::U8,
            Self::I8 => DLDataType::I8,
            Self::F8_E5M2 => DLDataType::F8E5M2,
            Self::F8_E4M3 => DLDataType::F8E4M3FN,
            Self::F8_E8M0 => DLDataType::F8E8M0FNU,
            Self::F8_E4M3FNUZ => DLDataType::F8E4M3FNUZ,
            Self::F8_E5M2FNUZ => DLDataType::F8E5M2FNUZ,
            Self::I16 => DLDataType::I16,
            Self::U16 => DLDataType::U16,
            Self::F16 => DLDataType::F16,
            Self::BF16 => DLDataType::BF16,
            Self::I32 => DLDataType::I32,
            Self::U32 => DLDataType::U32,
            Self::F32 => DLDataType::F32,
            Self::C64 => DLDataType::C64,
            Self::F64 => DLDataType::F64,
            Self::I64 => DLDataType::I64,
            Self::U64 => DLDataType::U64,
        }
    }
}

impl TensorView<'_> {
    /// The device as DLPack numbers it: `kDLCPU` or `kDLCUDA`.
    ///
    /// Pinned memory is said to be the CPU's, as torch says of its own: `kDLCUDAHost`, the number that there is for it, is one that torch (2.15) refuses.
    ///
    /// # Errors
    /// When the tensor is in memory of a driver from outside this crate, which DLPack has no number for.
    pub fn dlpack_device(&self) -> Result<DLDevice> {
        let device = |device_type, device_id| Ok(DLDevice { device_type, device_id });
        match self.device().kind() {
            DeviceKind::Host | DeviceKind::Pinned if self.device().is_host_accessible() => {
                device(DLDeviceType::CPU, 0)
            }
            DeviceKind::Cuda(ordinal) if i32::try_from(ordinal).is_ok() => {
                device(DLDeviceType::CUDA, ordinal as i32)
            }
            _ => Err(self.error(
                "export by DLPack",
                format!("memory of {}", self.device()),
                "host, pinned or CUDA memory",
                Remedy::COPY_TO_HOST,
            )),
        }
    }
}

impl Tensor {
    /// The tensor for reading, as DLPack's structure of version 1: flagged as read-only.
    ///
    /// # Errors
    /// When DLPack has no number for the device.
    pub fn to_dlpack(&self) -> Result<versioned::Dlpack> {
        self.clone().managed(DlpackFlags::READ_ONLY)
    }

    /// Hands the tensor over, as DLPack's structure of version 1: for reading and writing if this is its only owner and every recorded use on
    /// a stream has ended, else flagged as read-only.
    ///
    /// # Errors
    /// When DLPack has no number for the device.
    pub fn into_dlpack(mut self) -> Result<versioned::Dlpack> {
        // `get_mut` sees all that former owners have done, and refuses while a use on a stream may be under way.
        let flags = match self.get_mut() {
            Some(_) => DlpackFlags::empty(),
            None => DlpackFlags::READ_ONLY,
        };
        self.managed(flags)
    }

    /// Hands the tensor over, as DLPack's structure from before version 1, for libraries that know no other. It has no flags, so what takes it may
    /// write without a warning: clone the tensor first only if what takes the clone does not.
    ///
    /// # Errors
    /// When DLPack has no number for the device.
    pub fn into_legacy_dlpack(self) -> Result<legacy::Dlpack> {
        self.managed(DlpackFlags::empty())
    }

    fn managed<M: ManagedTensorBase>(self, flags: DlpackFlags) -> Result<Managed<M>> {
        let device = self.view().dlpack_device()?;
        let data = if self.nbytes() == 0 { std::ptr::null_mut() } else { self.as_ptr().cast_mut().cast() };
        let dtype = self.dtype().dlpack();
        let prepared = match Dynamic::compact(self.shape()).prepare_as::<M>() {
            Ok(prepared) => prepared,
            Err(error) => {
                let (got, remedy) = (format!("shape {:?}", self.shape()), "narrow it");
                return Err(self.view().error("export by DLPack", got, error, remedy));
            }
        };
        let mut managed = prepared.initialize(Box::new(self));
        managed.set_data(data).set_device(device).set_dtype(dtype);
        // SAFETY: the only flag that promises something of ours is READ_ONLY, which is always right to set.
        unsafe { managed.set_flags_unchecked(flags) };
        // SAFETY: shape and strides are of the allocation; the tensor in it keeps the bytes alive (I1) until the deleter drops it, and has as many as shape
        // and type say (Y2), at addresses that a device of that kind and number has (Y1, Q4). Only who was handed the sole owner, of which no use is under way, is
        // told that it may write, and no view of it is left then, since those borrow.
        Ok(unsafe { managed.finish() })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;
    use crate::{Device, Loader, Pool};

    fn load(pool: &Pool) -> Vec<Tensor> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.safetensors");
        let header = r#"{"scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"empty":{"dtype":"BF16","shape":[2,0,3],"data_offsets":[4,4]},"matrix":{"dtype":"I16","shape":[2,3],"data_offsets":[4,16]}}"#;
        let data: Vec<u8> = (0..16).collect();
        fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
        let weights = Loader::new(Device::host()).files([file]).pool(pool).load().unwrap();
        let names = ["scalar", "empty", "matrix"];
        names.map(|name| weights.tensor(name).unwrap()).into_iter().collect()
    }

    fn pool() -> Pool {
        Pool::builder(Device::host().memory()).build().unwrap()
    }

    #[test]
    fn shapes_strides_and_bytes_are_those_of_the_tensor() {
        let tensors = load(&pool());
        let [scalar, empty, matrix] = &*tensors else { panic!() };
        let exported = scalar.to_dlpack().unwrap();
        let found = exported.validate_export().unwrap();
        assert_eq!((found.shape(), found.dtype(), found.device()), (&[][..], DLDataType::F32, DLDevice::CPU));
        let exported = empty.to_dlpack().unwrap();
        let found = exported.validate_export().unwrap();
        assert_eq!((found.shape(), found.dtype()), (&[2, 0, 3][..], DLDataType::BF16));
        // SAFETY: the structure alone is read.
        assert!(unsafe { exported.tensor() }.data.is_null());
        let exported = matrix.clone().into_legacy_dlpack().unwrap();
        let found = exported.validate_export().unwrap();
        assert_eq!((found.shape(), found.strides()), (&[2, 3][..], Some(&[3, 1][..])));
        // SAFETY: the bytes are in host memory, and no one writes them.
        assert_eq!(unsafe { found.cpu_bytes() }.unwrap(), matrix.as_bytes().unwrap());
    }

    #[test]
    fn only_the_sole_owner_is_handed_over_for_writing() {
        let mut tensors = load(&pool());
        let matrix = tensors.pop().unwrap();
        assert!(matrix.to_dlpack().unwrap().flags().contains(DlpackFlags::READ_ONLY));
        let other = matrix.clone();
        assert!(other.into_dlpack().unwrap().flags().contains(DlpackFlags::READ_ONLY));
        let part = matrix.narrow(0, 0, 1).unwrap();
        drop(matrix.clone().into_dlpack());
        drop(part);
        assert!(matrix.into_dlpack().unwrap().flags().is_empty());
    }

    #[test]
    fn a_structure_keeps_its_own_bytes_alone_and_gives_them_back_on_any_thread() {
        let pool = pool();
        let mut tensors = load(&pool);
        let exported = tensors.pop().unwrap().into_dlpack().unwrap();
        drop(tensors);
        pool.trim();
        assert_eq!((pool.stats().live_bytes, pool.stats().fragments), (12, 1));
        thread::spawn(move || drop(exported)).join().unwrap();
        pool.trim();
        assert_eq!(pool.stats().reserved_bytes, 0);
    }

    #[test]
    fn every_dtype_has_as_many_bits_in_dlpack() {
        for dtype in DType::ALL {
            let theirs = dtype.dlpack();
            assert_eq!((u32::from(theirs.bits), theirs.lanes), (dtype.bits(), 1), "{dtype}");
        }
    }
}
