//! What happens to tensors on their way to a device, as CUDA kernels and as functions for the CPU that give the same bytes.
//!
//! - [`Conversion`]: elements of one [`Type`] become elements of another, bit for bit as torch does it.
//! - [`gather`]: a [`Block`] of a tensor, cut along any dimensions, becomes a tensor of its own or a part of another.
//! - [`repack`]: bytes from any alignment to an aligned place.
//!
//! ```
//! use tensorhold_kernels::{Block, Conversion, Type, gather};
//!
//! let conversion = Conversion::new(Type::F32, Type::BF16)?;
//! let source: Vec<u8> = [1.0_f32, -2.5, 1e38, f32::NAN].iter().flat_map(|x| x.to_le_bytes()).collect();
//! let mut target = [0; 8];
//! let counts = conversion.convert_counted(&source, &mut target)?;
//! assert_eq!(target[..4], [0x80, 0x3f, 0x20, 0xc0]);
//! assert_eq!((counts.nan, counts.out_of_range), (1, 0));
//!
//! // Columns 1 and 2 of a matrix of three rows and four columns of bytes.
//! let matrix = *b"abcdefghijkl";
//! let mut columns = [0; 6];
//! gather(1, &Block::cut(&[3, 4], &[0, 1], &[3, 2])?, &matrix, &mut columns)?;
//! assert_eq!(&columns, b"bcfgjk");
//! # Ok::<(), tensorhold_kernels::Error>(())
//! ```
//!
//! # On a device
//! A [`Launch`] says which [`Kernel`] to launch, over what grid, and with what parameter. Everything that can be checked is checked when it is
//! made. The images are PTX 8.0 for compute capability 7.5, which drivers from r525 on load on any later device; there is one for each kernel,
//! so that a driver compiles no more than is used. This crate calls no driver: whoever has one launches.
//!
//! All numbers are little-endian, as in the safetensors format. `docs/kernels.md` has the rules of rounding, and their sources.

#![deny(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::todo, clippy::unimplemented)]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

mod block;
mod convert;
mod error;
mod gather;
mod image;
mod launch;
mod numbers;
mod types;
mod wide;

pub use block::Block;
pub use convert::{Conversion, Counts, Overflow, convert, is_supported, pairs};
pub use error::{Error, Result};
pub use gather::{gather, repack};
pub use image::Kernel;
pub use launch::{Launch, Span, Task};
pub use types::Type;
