//! [`Shape`]: the dimensions of a tensor.

use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::Serialize;
use smallvec::SmallVec;

use crate::dtype::DType;

/// The dimensions of a tensor, outermost first. It derefs to `[usize]`; up to four take no memory of their own.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Shape(SmallVec<[usize; 4]>);

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl DerefMut for Shape {
    fn deref_mut(&mut self) -> &mut [usize] {
        &mut self.0
    }
}

impl From<&[usize]> for Shape {
    fn from(dimensions: &[usize]) -> Self {
        Self(dimensions.into())
    }
}

impl From<Vec<usize>> for Shape {
    fn from(dimensions: Vec<usize>) -> Self {
        Self(dimensions.into())
    }
}

/// How many elements a tensor of these dimensions has; `None` where that is 2^64 or more. If one dimension is 0 there are none, however long the others are.
pub(crate) fn elements(dimensions: &[usize]) -> Option<u64> {
    match dimensions.contains(&0) {
        true => Some(0),
        false => dimensions.iter().try_fold(1_u64, |product, &there| product.checked_mul(there as u64)),
    }
}

/// The size of a tensor in bits; `None` if that, or the number of its elements, overflows 64 bits. As the `safetensors` crate counts, from the outermost
/// dimension: behind a 0 no dimension is too long.
pub(crate) fn bits(dtype: DType, shape: &[usize]) -> Option<u64> {
    let elements = shape.iter().try_fold(1_u64, |product, &length| product.checked_mul(length as u64))?;
    elements.checked_mul(u64::from(dtype.bits()))
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
