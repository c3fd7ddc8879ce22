//! [`Kernel`]: the images in `images.zip`, which the script `build` compiles from `cuda/`.

use std::ffi::{CStr, CString};
use std::fmt;
use std::io::{Cursor, Read};

use zip::ZipArchive;

use crate::error::{Error, Result};
use crate::types::Type;

/// The images, a member `<name>.ptx` for each kernel.
static ARCHIVE: &[u8] = include_bytes!("../images.zip");

/// A kernel: one function in one image. All of them take one parameter, a [`Task`](crate::Task), by value.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// With a 0 at its end.
    name: &'static str,
    /// Words that a thread has in flight at once: the template argument in the source.
    pub(crate) words: u64,
}

macro_rules! kernel {
    ($words:expr, $($part:tt)*) => {
        Kernel {
            name: concat!($($part)*, "\0"),
            words: $words,
        }
    };
}

macro_rules! conversions {
    ($($from:ident => $($to:ident)*;)*) => {
        const CONVERSIONS: &[(Type, Type, Kernel)] = &[$($((
            Type::$from,
            Type::$to,
            kernel!(if Type::$from.bytes() >= 4 { 2 } else { 1 }, "convert_", stringify!($from), "_", stringify!($to)),
        ),)*)*];
    };
}

conversions! {
    F64 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    F32 => F16 BF16 F8_E4M3 F8_E5M2;
    F16 => F32 BF16 F8_E4M3 F8_E5M2;
    BF16 => F32 F16 F8_E4M3 F8_E5M2;
    F8_E4M3 => F32 F16 BF16 F8_E5M2;
    F8_E5M2 => F32 F16 BF16 F8_E4M3;
    F8_E4M3FNUZ => F32 F16 BF16 F8_E4M3 F8_E5M2;
    F8_E5M2FNUZ => F32 F16 BF16 F8_E4M3 F8_E5M2;
    F8_E8M0 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    U8 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    I8 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    U16 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    I16 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    U32 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    I32 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    U64 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    I64 => F32 F16 BF16 F8_E4M3 F8_E5M2;
    BOOL => F32 F16 BF16 F8_E4M3 F8_E5M2;
}

const REPACK: Kernel = kernel!(4, "repack");
const GATHER: Kernel = kernel!(2, "gather");
const GATHER_WORDS: [Kernel; 5] = [
    kernel!(4, "gather_1"),
    kernel!(4, "gather_2"),
    kernel!(4, "gather_4"),
    kernel!(4, "gather_8"),
    kernel!(4, "gather_16"),
];

impl Kernel {
    /// The name of the function, as `cuModuleGetFunction` takes it.
    pub fn name(&self) -> &'static CStr {
        CStr::from_bytes_until_nul(self.name.as_bytes()).unwrap_or_default()
    }

    /// The image, PTX, as `cuModuleLoadData` takes it. Each call decompresses it: 5 to 60 KB.
    ///
    /// # Errors
    /// [`Error::Image`] if the archive does not have it, which a test of this crate rules out.
    pub fn ptx(&self) -> Result<CString> {
        let name = self.name().to_string_lossy();
        let failed = |problem: String| Error::Image { kernel: name.to_string(), problem };
        let mut archive = ZipArchive::new(Cursor::new(ARCHIVE)).map_err(|error| failed(error.to_string()))?;
        let mut image = archive.by_name(&format!("{name}.ptx")).map_err(|error| failed(error.to_string()))?;
        let mut text =
            Vec::with_capacity(usize::try_from(image.size()).unwrap_or_default().saturating_add(1));
        image.read_to_end(&mut text).map_err(|error| failed(error.to_string()))?;
        CString::new(text).map_err(|error| failed(error.to_string()))
    }

    /// Every kernel.
    pub fn all() -> impl Iterator<Item = Kernel> {
        let copies = [REPACK, GATHER].into_iter().chain(GATHER_WORDS);
        copies.chain(CONVERSIONS.iter().map(|&(_, _, kernel)| kernel))
    }

    pub(crate) fn convert(from: Type, to: Type) -> Option<Kernel> {
        CONVERSIONS
            .iter()
            .find(|&&(source, target, _)| (source, target) == (from, to))
            .map(|&(.., kernel)| kernel)
    }

    pub(crate) fn repack() -> Kernel {
        REPACK
    }

    pub(crate) fn gather() -> Kernel {
        GATHER
    }

    /// The kernel for words of 1, 2, 4, 8 or 16 bytes, by the power of two.
    pub(crate) fn gather_words(log2: usize) -> Kernel {
        GATHER_WORDS.get(log2).copied().unwrap_or(GATHER)
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Kernel {}
