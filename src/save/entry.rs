//! [`Entry`] and [`Item`]: what is written, and where its bytes come from.

use std::fmt;

use tensorhold_allocator::Brief;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::METADATA;
use crate::shape::{self, Shape};
use crate::tensor::TensorView;

/// What a tensor is in a file: its name, the type of its elements and its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    name: String,
    dtype: DType,
    shape: Shape,
    nbytes: u64,
}

impl Entry {
    /// A tensor of that name, type and shape.
    ///
    /// # Errors
    /// When the format has reserved the name, or the elements are more than 2^64 bits or end within a byte.
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[usize]) -> Result<Self> {
        let name = name.into();
        let error = |got: String, expected: &str, remedy: &'static str| {
            Err(Error::Tensor {
                operation: "save",
                name: name.clone(),
                got,
                expected: expected.into(),
                remedy: remedy.into(),
            })
        };
        if name == METADATA {
            let got = "the name that files keep for their strings".to_owned();
            return error(got, "another name", "rename the tensor");
        }
        match shape::bits(dtype, shape) {
            None => error(
                format!("{dtype}{}", Brief(format_args!("{shape:?}"))),
                "fewer than 2^64 bits",
                "write it in parts",
            ),
            Some(bits) if !bits.is_multiple_of(8) => {
                let remedy = "pad the last dimension to an even number of bytes";
                error(
                    format!("{dtype}{}, which is {bits} bits", Brief(format_args!("{shape:?}"))),
                    "whole bytes",
                    remedy,
                )
            }
            Some(bits) => Ok(Self { name, dtype, shape: shape.into(), nbytes: bits / 8 }),
        }
    }

    /// What a tensor in memory is.
    pub fn of(tensor: TensorView<'_>) -> Self {
        let info = tensor.info();
        Self {
            name: info.name.to_string(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            nbytes: info.nbytes,
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions, outermost first; none for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The size in bytes.
    pub fn nbytes(&self) -> u64 {
        self.nbytes
    }
}

/// What went wrong where bytes were made for a file.
pub type FillError = Box<dyn std::error::Error + Send + Sync>;

/// A tensor to be written, and where its bytes come from. All sources are read in chunks of at most 4 MiB, by several threads at once.
#[derive(Debug)]
pub struct Item<'a> {
    pub(super) entry: Entry,
    pub(super) source: Source<'a>,
}

pub(super) enum Source<'a> {
    Bytes(&'a [u8]),
    Tensor(TensorView<'a>),
    Fill(Fill<'a>),
}

type Fill<'a> = Box<dyn Fn(u64, &mut [u8]) -> Result<(), FillError> + Send + Sync + 'a>;

impl<'a> Item<'a> {
    /// A tensor on whatever device, under its own name.
    pub fn tensor(tensor: TensorView<'a>) -> Self {
        Self { entry: Entry::of(tensor), source: Source::Tensor(tensor) }
    }

    /// Bytes in host memory: the elements, row by row and little endian.
    ///
    /// # Errors
    /// When they are not as many as the entry has.
    pub fn bytes(entry: Entry, bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() as u64 == entry.nbytes {
            return Ok(Self { entry, source: Source::Bytes(bytes) });
        }
        Err(Error::Tensor {
            operation: "save",
            got: format!("{} bytes", bytes.len()),
            expected: format!(
                "{} by its type and shape, {}{}",
                entry.nbytes,
                entry.dtype,
                Brief(format_args!("{:?}", entry.shape))
            ),
            remedy: "give the bytes of all of its elements, and no others".into(),
            name: entry.name,
        })
    }

    /// Bytes that a function writes into a buffer: as many as the buffer is long, from the given offset in the tensor on. It is called from several
    /// threads, once for each part of the tensor, in no order.
    pub fn fill(
        entry: Entry,
        fill: impl Fn(u64, &mut [u8]) -> Result<(), FillError> + Send + Sync + 'a,
    ) -> Self {
        Self { entry, source: Source::Fill(Box::new(fill)) }
    }

    /// What is written.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Tensor(tensor) => tensor.fmt(f),
            Self::Fill(_) => f.write_str("a function"),
        }
    }
}
