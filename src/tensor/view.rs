//! [`TensorView`]: a borrowed tensor, and all that can be read of one.

use tensorhold_allocator::{FragmentView, FragmentViewMut, Quoted};

use super::{Description, TensorInfo};
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Remedy, Result};

/// A tensor borrowed from its [`Weights`](crate::Weights) or its [`Tensor`](crate::Tensor): three words, free to make
/// and to copy.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    bytes: FragmentView<'a>,
    description: &'a Description,
}

impl<'a> TensorView<'a> {
    /// Of a tensor's own memory and description (Y1, Y2).
    pub(super) fn new(bytes: FragmentView<'a>, description: &'a Description) -> Self {
        debug_assert_eq!(bytes.len(), description.info.nbytes);
        Self { bytes, description }
    }

    /// The description.
    pub fn info(&self) -> &'a TensorInfo {
        &self.description.info
    }

    /// The name in the checkpoint.
    pub fn name(&self) -> &'a str {
        &self.info().name
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.info().dtype
    }

    /// The dimensions, outermost first; none for a scalar. Elements lie row by row, with no gaps.
    pub fn shape(&self) -> &'a [usize] {
        &self.info().shape
    }

    /// The size in bytes.
    pub fn nbytes(&self) -> u64 {
        self.info().nbytes
    }

    /// The device whose memory it is in.
    pub fn device(&self) -> &'a Device {
        &self.description.device
    }

    /// The address of the first element, in the device's memory; aligned to 256 bytes unless narrowed. That of a
    /// tensor of 0 bytes points to nothing.
    ///
    /// Keep the tensor until the CPU has stopped using the address. Device work that was submitted before the tensor
    /// was dropped is waited for.
    pub fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// The bytes, as they are in the file (little endian).
    ///
    /// # Errors
    /// When the tensor is not in host memory.
    pub fn as_bytes(&self) -> Result<&'a [u8]> {
        if !self.device().is_host_accessible() {
            let remedy = Remedy::COPY_TO_HOST;
            return Err(self.error(
                "read in place",
                format!("memory of {}", self.device()),
                "host memory",
                remedy,
            ));
        }
        // SAFETY: M2: by Y1 it lies in memory with the id of its device's, which is host-accessible, so by M4 it is so itself. No one writes: not on the CPU,
        // since writers borrow the only owner mutably, and by Y3 no device.
        Ok(unsafe { self.bytes.as_bytes() })
    }

    /// The elements, outermost dimension first. [`half::f16`] and [`half::bf16`] stand for F16 and BF16.
    ///
    /// There is no slice of `bool`: bytes of a file may be other than 0 and 1.
    ///
    /// # Errors
    /// When the tensor is not in host memory, or its dtype is not that of `T`.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T]> {
        self.check_element::<T>()?;
        let bytes = self.as_bytes()?;
        bytemuck::try_cast_slice(bytes).map_err(|error| {
            self.error("borrow as a slice", error, "aligned elements", "copy the bytes with to_host()")
        })
    }

    /// A copy of the bytes in host memory.
    ///
    /// # Errors
    /// When the device fails to copy.
    pub fn to_host(&self) -> Result<Vec<u8>> {
        if let Ok(bytes) = self.as_bytes() {
            return Ok(bytes.to_vec());
        }
        self.device().run(vec![0; self.nbytes() as usize], |stream, copy| {
            // SAFETY: Q1, Y1: the source is the device's memory. I1: the view keeps it, and the pool synchronizes it before it is used again, whatever
            // fails. Y2: `copy` has as many bytes, and `run` keeps it until the copy has ended (T1, T2).
            unsafe { stream.copy_to_host(copy.as_mut_ptr(), self.as_ptr(), self.nbytes()) }
        })
    }

    pub(super) fn check_element<T: Element>(&self) -> Result<()> {
        if self.dtype() == T::DTYPE {
            return Ok(());
        }
        let remedy = "ask for the type that the tensor has, or for as_bytes()";
        Err(self.error("borrow as a slice", self.dtype(), T::DTYPE, remedy))
    }

    pub(crate) fn error(
        &self,
        operation: &'static str,
        got: impl ToString,
        expected: impl ToString,
        remedy: impl Into<Remedy>,
    ) -> Error {
        Error::Tensor {
            operation,
            name: self.name().into(),
            got: got.to_string(),
            expected: expected.to_string(),
            remedy: remedy.into(),
        }
    }
}

impl std::fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} on {}", Quoted(self.name()), self.info().spelled(), self.device())
    }
}

/// A tensor borrowed for writing, from its only owner.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    bytes: FragmentViewMut<'a>,
    description: &'a Description,
}

impl<'a> TensorViewMut<'a> {
    pub(super) fn new(bytes: FragmentViewMut<'a>, description: &'a Description) -> Self {
        Self { bytes, description }
    }

    /// The description.
    pub fn info(&self) -> &'a TensorInfo {
        &self.description.info
    }

    /// Borrows it for reading.
    pub fn as_view(&self) -> TensorView<'_> {
        TensorView::new(self.bytes.as_view(), self.description)
    }

    /// The address of the first element; see [`TensorView::as_ptr`].
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// The bytes for writing.
    ///
    /// # Errors
    /// When the tensor is not in host memory.
    pub fn as_bytes_mut(&mut self) -> Result<&mut [u8]> {
        // Says what is wrong, if something is; the borrow of the bytes ends here.
        self.as_view().as_bytes()?;
        // SAFETY: M2: `as_bytes` found the memory to be host-accessible. I1: the owner is borrowed, mutably.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr(), self.bytes.len() as usize) })
    }

    /// The elements for writing.
    ///
    /// # Errors
    /// When the tensor is not in host memory, or its dtype is not that of `T`.
    pub fn as_mut_slice<T: Element + bytemuck::NoUninit>(&mut self) -> Result<&mut [T]> {
        // Checks dtype, device and alignment.
        self.as_view().as_slice::<T>()?;
        let bytes = self.as_bytes_mut()?;
        Ok(bytemuck::cast_slice_mut(bytes))
    }
}
