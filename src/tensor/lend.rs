//! Tensors lent to cudarc's own API, for kernels and copies that are written with it.
//!
//! cudarc's `CudaSlice` owns its memory and frees it when it is dropped. A [`Lent`] is one that does neither: it keeps the
//! tensor borrowed, and gives the slice up without its memory.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaViewMut};

use super::{TensorView, TensorViewMut};
use crate::device::DeviceKind;
use crate::dtype::Element;
use crate::error::Result;

/// A tensor as cudarc's slice, to read from: it derefs to it. What the slice is given to on a stream is waited for before the tensor's
/// memory is used again, as with an address that was given out.
///
/// It cannot outlive what was lent:
///
/// ```compile_fail
/// # fn f(weights: tensorhold::Weights, stream: &std::sync::Arc<cudarc::driver::CudaStream>) -> tensorhold::Result<()> {
/// let lent = weights.view("t")?.lend::<f32>(stream)?;
/// weights.close(); // cannot move out of `weights` because it is borrowed
/// println!("{}", lent.len());
/// # Ok(())
/// # }
/// ```
pub struct Lent<'a, T> {
    slice: ManuallyDrop<CudaSlice<T>>,
    view: TensorView<'a>,
}

/// A tensor as cudarc's slice, to write to as well; from its only owner. To be written to it gives cudarc's view: a slice that could
/// be replaced could be freed.
pub struct LentMut<'a, T>(Lent<'a, T>);

impl<'a> TensorView<'a> {
    /// Lends the tensor to cudarc, as elements in the order of memory. The stream is where cudarc orders its work on the slice; it
    /// is one of the tensor's device.
    ///
    /// # Errors
    /// When the tensor is not on a CUDA device or the CPU shares its memory, the stream is another device's, the dtype is not that of `T`, or the driver refuses.
    pub fn lend<T: Element>(&self, stream: &Arc<CudaStream>) -> Result<Lent<'a, T>> {
        self.check_element::<T>()?;
        self.lend_as(stream, size_of::<T>())
    }

    /// As [`lend`](Self::lend), as bytes, whatever the dtype.
    ///
    /// # Errors
    /// As [`lend`](Self::lend), but for the dtype.
    pub fn lend_bytes(&self, stream: &Arc<CudaStream>) -> Result<Lent<'a, u8>> {
        self.lend_as(stream, 1)
    }

    fn lend_as<T>(&self, stream: &Arc<CudaStream>, element_bytes: usize) -> Result<Lent<'a, T>> {
        let ordinal = stream.context().ordinal();
        if self.device().kind() != DeviceKind::Cuda(ordinal) {
            let remedy = "lend a tensor on a CUDA device, with a stream of that device";
            return Err(self.error(
                "lend to cudarc",
                format!("memory of {}", self.device()),
                format!("memory of the stream's device, cuda:{ordinal}"),
                remedy,
            ));
        }
        if self.device().is_host_accessible() {
            // What is lent may be written to after it has been given back, by work that is still enqueued; the CPU would read it meanwhile.
            return Err(self.error(
                "lend to cudarc",
                format!("memory of {} that the CPU shares", self.device()),
                "memory that only the device uses",
                "give kernels its address, and synchronize the stream before the CPU reads it",
            ));
        }
        let refused = |error| {
            self.error(
                "lend to cudarc",
                error,
                "an event for the slice",
                "look the code up, and check the device",
            )
        };
        if stream.context().is_event_tracking() {
            // cudarc makes the slice's events next, and panics where it cannot: better to find out here.
            stream.context().new_event(None).map_err(refused)?;
        }
        let (address, elements) = (self.as_ptr() as u64, self.nbytes() as usize / element_bytes);
        // SAFETY: I1: the view borrows the tensor for 'a, and its memory is as long (Y2). Q4: its address is one of the stream's device. Every bit pattern of its bytes is an element, for
        // `Element` types and bytes. The slice does not free it: see `Drop`.
        let slice = unsafe { stream.upgrade_device_ptr::<T>(address, elements) };
        Ok(Lent { slice: ManuallyDrop::new(slice), view: *self })
    }
}

impl TensorViewMut<'_> {
    /// Lends the tensor to cudarc for writing; see [`TensorView::lend`]. Work that is enqueued on the stream may write after the slice has gone: synchronize the
    /// stream before the tensor is read on another, by [`to_host`](TensorView::to_host) for one.
    ///
    /// # Errors
    /// As [`TensorView::lend`].
    pub fn lend_mut<T: Element + bytemuck::NoUninit>(
        &mut self,
        stream: &Arc<CudaStream>,
    ) -> Result<LentMut<'_, T>> {
        self.as_view().lend(stream).map(LentMut)
    }

    /// Lends the tensor's bytes to cudarc for writing; see [`TensorView::lend_bytes`].
    ///
    /// # Errors
    /// As [`TensorView::lend_bytes`].
    pub fn lend_bytes_mut(&mut self, stream: &Arc<CudaStream>) -> Result<LentMut<'_, u8>> {
        self.as_view().lend_bytes(stream).map(LentMut)
    }
}

impl<T> LentMut<'_, T> {
    /// All of it, for kernels and copies that write.
    pub fn as_view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.0.slice.as_view_mut()
    }
}

impl<T> Deref for Lent<'_, T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.slice
    }
}

impl<T> Deref for LentMut<'_, T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.0
    }
}

impl<T> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        // SAFETY: taken once, here. Its stream comes after what others have done with it; its memory stays where it is.
        let slice = unsafe { ManuallyDrop::take(&mut self.slice) };
        slice.leak();
    }
}

impl<T> fmt::Debug for Lent<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lent").field(&self.view).finish()
    }
}

impl<T> fmt::Debug for LentMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LentMut").field(&self.0.view).finish()
    }
}
