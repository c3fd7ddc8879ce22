//! The same bytes as elements of another type.

use std::sync::Arc;

use super::{Description, Tensor, TensorInfo};
use crate::dtype::DType;
use crate::error::Result;

impl Tensor {
    /// The tensor's bytes as elements of another type, sharing them: for libraries that lack the type that it has. The last dimension becomes longer or
    /// shorter by the ratio of the sizes, so a scalar takes types of its own size only.
    ///
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let file = folder.path().join("model.safetensors");
    /// # let header = r#"{"scale":{"dtype":"BF16","shape":[3,2],"data_offsets":[0,12]}}"#;
    /// # std::fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[7; 12]].concat()).unwrap();
    /// use tensorhold::{DType, Device, Loader};
    ///
    /// let weights = Loader::new(Device::host()).files([file]).load()?;
    /// let bytes = weights.tensor("scale")?.reinterpret(DType::U8)?;
    /// assert_eq!((bytes.dtype(), bytes.shape()), (DType::U8, &[3, 4][..]));
    /// # Ok::<(), tensorhold::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a row of the last dimension is no whole number of such elements, or the tensor, as a part of another, does not begin where they may.
    pub fn reinterpret(&self, dtype: DType) -> Result<Tensor> {
        let info = self.info();
        let wrong = |got: String, expected: String| {
            let remedy = "reinterpret it as U8 or as a type of its own size, or narrow it elsewhere";
            Err(self.view().error("reinterpret", got, expected, remedy))
        };
        let (from, to) = (u64::from(info.dtype.bits()), u64::from(dtype.bits()));
        let mut shape = info.shape.clone();
        if from != to {
            let Some(row) = shape.last_mut() else {
                return wrong(
                    format!("{dtype} for a scalar of {}", info.dtype),
                    format!("a type of {from} bits"),
                );
            };
            // May not fit where the tensor has no elements: then any number of them is a row.
            let Some(bits) = (*row as u64).checked_mul(from) else {
                let got = format!("{dtype} for rows of {row} elements of {from} bits");
                return wrong(got, "rows of fewer than 2^64 bits".into());
            };
            if !bits.is_multiple_of(to) {
                return wrong(format!("{dtype} for rows of {bits} bits"), format!("a multiple of {to} bits"));
            }
            *row = (bits / to) as usize;
        }
        // Complex numbers are aligned as their parts are.
        let align = if dtype == DType::C64 { 4 } else { (to / 8).max(1) };
        if !(self.as_ptr() as u64).is_multiple_of(align) {
            return wrong(
                format!("{dtype} at {:?}", self.as_ptr()),
                format!("an address that {align} divides"),
            );
        }
        let info = TensorInfo { dtype, shape, ..info.clone() };
        self.with(Description { info, device: Arc::clone(&self.description.device) })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Device, Loader};

    fn tensor(dtype: &str, shape: &str, bytes: usize) -> Tensor {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.safetensors");
        let header = format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#);
        let data: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
        fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
        Loader::new(Device::host()).files([file]).load().unwrap().tensor("t").unwrap()
    }

    #[test]
    fn the_last_dimension_follows_the_size_of_the_type_and_the_bytes_stay() {
        for (dtype, shape, bytes, as_type, expected) in [
            ("F8_E4M3", "[2,3]", 6, DType::U8, &[2, 3][..]),
            ("F4", "[2,6]", 6, DType::U8, &[2, 3]),
            ("U8", "[2,3]", 6, DType::F4, &[2, 6]),
            ("F6_E2M3", "[4]", 3, DType::U8, &[3]),
            ("BF16", "[2,3]", 12, DType::U16, &[2, 3]),
            ("I64", "[2,1]", 16, DType::C64, &[2, 1]),
            ("U8", "[0,8]", 0, DType::F64, &[0, 1]),
            ("F32", "[]", 4, DType::I32, &[]),
        ] {
            let tensor = tensor(dtype, shape, bytes);
            let other = tensor.reinterpret(as_type).unwrap();
            assert_eq!((other.dtype(), other.shape()), (as_type, expected), "{dtype}{shape}");
            assert_eq!((other.nbytes(), other.as_ptr()), (tensor.nbytes(), tensor.as_ptr()));
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_says_what_would() {
        let refused = |tensor: &Tensor, dtype| tensor.reinterpret(dtype).unwrap_err().to_string();
        let odd = refused(&tensor("U8", "[2,3]", 6), DType::F16);
        assert!(odd.contains("F16 for rows of 24 bits") && odd.contains("a multiple of 16 bits"), "{odd}");
        let scalar = refused(&tensor("F32", "[]", 4), DType::U8);
        assert!(scalar.contains("a type of 32 bits"), "{scalar}");
        let huge = tensor("F64", "[0,9007199254740991000]", 0);
        assert!(refused(&huge, DType::U8).contains("fewer than 2^64 bits"));
        let part = tensor("U8", "[9]", 9).narrow(0, 1, 8).unwrap();
        assert!(refused(&part, DType::F32).contains("an address that 4 divides"));
    }
}
