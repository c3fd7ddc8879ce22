//! Tensors that are made of bytes in host memory, rather than loaded.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use tensorhold_allocator::{Pool, Request};

use super::{Description, Tensor, TensorInfo};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::{self, Shape};

/// Tensors begin at a multiple of this many bytes.
const ALIGNMENT: u64 = 256;

impl TensorInfo {
    /// A tensor of that name, type and shape, as `file` would have it.
    ///
    /// # Errors
    /// When the elements are 2^64 bits or more, or end within a byte.
    pub fn new(
        name: impl Into<Arc<str>>,
        dtype: DType,
        shape: impl Into<Shape>,
        file: impl Into<Arc<Path>>,
    ) -> Result<Self> {
        let (name, shape, file) = (name.into(), shape.into(), file.into());
        let nbytes = shape::elements(&shape)
            .and_then(|elements| elements.checked_mul(dtype.bits().into()))
            .map_or(0, |bits| bits / 8);
        let info = Self { name, dtype, shape, nbytes, file };
        info.check("describe a tensor")?;
        Ok(info)
    }

    /// # Errors
    /// When the tensor does not have this number of bytes.
    fn check_bytes(&self, bytes: usize) -> Result<()> {
        if self.nbytes == bytes as u64 {
            return Ok(());
        }
        Err(Error::Tensor {
            operation: "make a tensor",
            name: self.name.to_string(),
            got: format!("{bytes} bytes"),
            expected: format!("{} by its type and shape, {}", self.nbytes, self.spelled()),
            remedy: "give the bytes of all of its elements, and no others".into(),
        })
    }
}

impl Tensor {
    /// A tensor with these bytes, its elements row by row and little endian, in a pool over the device's memory.
    ///
    /// # Errors
    /// When the bytes are not as many as type and shape take, the pool has no room for them or is over other memory, and when the device fails to copy them.
    pub fn from_host(info: TensorInfo, device: &Device, pool: &Pool, bytes: &[u8]) -> Result<Self> {
        info.check("make a tensor")?;
        // Before memory is placed: the length of the bytes is the only one that is known to be possible.
        info.check_bytes(bytes.len())?;
        let fragment = pool.place(Arc::clone(&info.name), Request::new(info.nbytes, ALIGNMENT))?;
        let mut tensor =
            Self::new(fragment, Arc::new(Description { info, device: Arc::new(device.clone()) }))?;
        tensor.fill(bytes.into())?;
        Ok(tensor)
    }

    /// Sets the bytes of a tensor that has no other owner.
    ///
    /// # Errors
    /// When they are not as many as the tensor has, it has other owners, or the device fails to copy them.
    pub(crate) fn fill(&mut self, bytes: Cow<'_, [u8]>) -> Result<()> {
        self.info().check_bytes(bytes.len())?;
        let device = Arc::clone(&self.description().device);
        let Some(mut target) = self.get_mut() else {
            return Err(self.view().error(
                "fill",
                "a tensor with other owners",
                "the only owner",
                "fill it before it is shared",
            ));
        };
        if device.is_host_accessible() {
            target.as_bytes_mut()?.copy_from_slice(&bytes);
            return Ok(());
        }
        device.run(bytes.into_owned(), |stream, bytes| {
            // SAFETY: Q1, Y1: the target is the device's memory, and as long as the bytes, as was checked. I1: `run` keeps the bytes until the copy has ended; the
            // target's only owner is borrowed mutably, and its pool synchronizes it before it is used again (Q3).
            unsafe { stream.copy_to_device(target.as_mut_ptr(), bytes.as_ptr(), bytes.len() as u64) }
        })?;
        Ok(())
    }
}
