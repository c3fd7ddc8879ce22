//! [`Tensor`]: a counted owner of a tensor.

use std::sync::Arc;

use tensorhold_allocator::{Fragment, OrderedStream, StreamUse};

use super::{Description, TensorInfo, TensorView, TensorViewMut};
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Remedy, Result};
use crate::shape::elements;

/// A tensor that keeps its own bytes alive, and nothing else's: `'static`, `Send` and `Sync`, four words.
///
/// Its memory goes back to the pool after the last clone, narrowed part and set of weights that hold it are gone,
/// from whichever thread.
#[derive(Clone)]
pub struct Tensor {
    bytes: Fragment,
    pub(super) description: Arc<Description>,
}

impl Tensor {
    /// A tensor of memory that was placed for it.
    ///
    /// # Errors
    /// When the memory is not that of the description's device (Y1), or not as long as the description says (Y2).
    pub(crate) fn new(bytes: Fragment, description: Arc<Description>) -> Result<Self> {
        let (info, device) = (&description.info, &description.device);
        info.check("make a tensor")?;
        if bytes.memory_id() != device.memory_id() || bytes.len() != info.nbytes {
            let (id, length) = (bytes.memory_id(), bytes.len());
            return Err(Error::Tensor {
                operation: "make a tensor",
                name: info.name.to_string(),
                got: format!("{length} bytes of memory {id}"),
                expected: format!("{} bytes of memory {}, that of {device}", info.nbytes, device.memory_id()),
                remedy: Remedy::TENSOR_POOL,
            });
        }
        Ok(Self { bytes, description })
    }

    /// Borrows the tensor.
    pub fn view(&self) -> TensorView<'_> {
        TensorView::new(self.bytes.view(), &self.description)
    }

    /// Borrows the tensor for writing, if this is the only owner: no clone or part is left, and the weights that it
    /// came from are gone.
    pub fn get_mut(&mut self) -> Option<TensorViewMut<'_>> {
        Some(TensorViewMut::new(self.bytes.get_mut()?, &self.description))
    }

    /// The part of the tensor whose index in dimension `dimension` is `start..start + length`, sharing its bytes.
    ///
    /// Tensors have no gaps, so the part must be one run of bytes: all dimensions before `dimension` have length 1,
    /// as for rows of a matrix.
    ///
    /// # Errors
    /// When there is no such dimension or range, or the part is not one run of whole bytes.
    pub fn narrow(&self, dimension: usize, start: usize, length: usize) -> Result<Tensor> {
        let (view, info) = (self.view(), self.info());
        let error =
            |got: String, expected: String, remedy: Remedy| Err(view.error("narrow", got, expected, remedy));
        let Some(&extent) = info.shape.get(dimension) else {
            let got = format!("dimension {dimension}");
            return error(
                got,
                format!("one of its {} dimensions", info.shape.len()),
                "count dimensions from 0".into(),
            );
        };
        if start.checked_add(length).is_none_or(|end| end > extent) {
            let got = format!("{length} from {start} on in dimension {dimension}");
            return error(got, format!("a range within 0..{extent}"), Remedy::CHECK_SHAPE);
        }
        if info.shape[..dimension].iter().any(|&outer| outer != 1) {
            let got = format!("dimension {dimension} of shape {:?}", info.shape);
            return error(got, "one run of bytes".into(), "narrow dimension 0, or copy what you need".into());
        }
        // By Y2 the whole tensor's size in bits fits, and so does that of an index of one that has elements. Others have no bits.
        let bits = match info.nbytes {
            0 => 0,
            _ => elements(&info.shape[dimension + 1..]).unwrap_or(0) * u64::from(info.dtype.bits()),
        };
        let (first, total) = (start as u64 * bits, length as u64 * bits);
        if !first.is_multiple_of(8) || !total.is_multiple_of(8) {
            let got = format!("bits {first}..{}", first + total);
            return error(got, "whole bytes".into(), "begin and end at elements that begin a byte".into());
        }
        let Some(bytes) = self.bytes.slice(first / 8, total / 8) else {
            return error(
                format!("{} bytes", total / 8),
                format!("at most {}", info.nbytes),
                "report this as a bug".into(),
            );
        };
        let mut shape = info.shape.clone();
        shape[dimension] = length;
        let info = TensorInfo { shape, nbytes: total / 8, ..info.clone() };
        let device = Arc::clone(&self.description.device);
        Self::new(bytes, Arc::new(Description { info, device }))
    }

    /// Uses the tensor on a stream: what is enqueued there until the guard ends is waited for before the memory is used
    /// again or given back. A tensor whose address is only had from such guards waits for that alone when it is dropped; one whose
    /// address was given out otherwise, by a view say, waits for all work on the device.
    ///
    /// # Errors
    /// When uses on the stream cannot be recorded, as while it is captured.
    pub fn use_on<'a>(&'a self, stream: &'a dyn OrderedStream) -> Result<StreamUse<'a>> {
        Ok(self.bytes.use_on(stream)?)
    }

    /// Another owner of the same bytes, described otherwise.
    ///
    /// # Errors
    /// When the description says more or fewer bytes.
    pub(super) fn with(&self, description: Description) -> Result<Self> {
        Self::new(self.bytes.clone(), Arc::new(description))
    }

    /// Says that what brought the bytes has ended.
    ///
    /// # Safety
    /// It has, and no one has been given the tensor yet.
    pub(crate) unsafe fn landed(&self) {
        // SAFETY: the address has been with the loader alone, which has ended.
        unsafe { self.bytes.assume_unused() };
    }

    /// Whether there are other owners. If not, none can come but through this one. What they have done with the tensor may still be under way:
    /// whoever is to write asks [`get_mut`](Self::get_mut).
    pub(crate) fn is_shared(&self) -> bool {
        self.bytes.owners() > 1
    }

    /// Drops this owner. Returns the description if there are others.
    pub(crate) fn release(self) -> Option<Arc<Description>> {
        let Self { bytes, description } = self;
        (!bytes.release()).then_some(description)
    }

    /// What it shares with its clones, and with no other tensor.
    pub(crate) fn description(&self) -> &Arc<Description> {
        &self.description
    }

    /// The description.
    pub fn info(&self) -> &TensorInfo {
        &self.description.info
    }

    /// The name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.info().name
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.info().dtype
    }

    /// The dimensions; see [`TensorView::shape`].
    pub fn shape(&self) -> &[usize] {
        &self.info().shape
    }

    /// The size in bytes.
    pub fn nbytes(&self) -> u64 {
        self.info().nbytes
    }

    /// The device whose memory it is in.
    pub fn device(&self) -> &Device {
        &self.description.device
    }

    /// The address of the first element; see [`TensorView::as_ptr`].
    pub fn as_ptr(&self) -> *const u8 {
        self.view().as_ptr()
    }

    /// The bytes; see [`TensorView::as_bytes`].
    ///
    /// # Errors
    /// When the tensor is not in host memory.
    pub fn as_bytes(&self) -> Result<&[u8]> {
        self.view().as_bytes()
    }

    /// The elements; see [`TensorView::as_slice`].
    ///
    /// # Errors
    /// When the tensor is not in host memory, or its dtype is not that of `T`.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.view().as_slice()
    }

    /// A copy of the bytes in host memory.
    ///
    /// # Errors
    /// When the device fails to copy.
    pub fn to_host(&self) -> Result<Vec<u8>> {
        self.view().to_host()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.view().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tensorhold_allocator::{Pool, Request};

    use super::*;
    use crate::shape::Shape;

    fn made(pool: &Pool, placed: u64, dtype: DType, shape: &[usize], nbytes: u64) -> Result<Tensor> {
        let bytes = pool.place("t", Request::new(placed, 256)).unwrap();
        let shape = Shape::from(shape);
        let info = TensorInfo { name: "t".into(), dtype, shape, nbytes, file: Path::new("f").into() };
        Tensor::new(bytes, Arc::new(Description { info, device: Arc::new(Device::host()) }))
    }

    #[test]
    fn a_tensor_is_as_long_as_its_type_and_shape_say() {
        let pool = Pool::builder(Device::host().memory()).build().unwrap();
        assert!(made(&pool, 24, DType::F32, &[2, 3], 24).is_ok());
        assert!(made(&pool, 0, DType::F32, &[0, usize::MAX, usize::MAX], 0).is_ok());
        for (placed, dtype, shape, nbytes) in [
            (24, DType::F32, &[2, 4][..], 24),
            (24, DType::F32, &[2, 3], 20),
            (20, DType::F32, &[2, 3], 24),
            (24, DType::F4, &[3], 1),
            (4, DType::F32, &[usize::MAX, usize::MAX], 4),
        ] {
            let error = made(&pool, placed, dtype, shape, nbytes).unwrap_err();
            assert!(matches!(error, Error::Tensor { operation: "make a tensor", .. }), "{error}");
        }
    }
}
