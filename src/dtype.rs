//! [`DType`]: the element types of the safetensors format, and [`Element`]: those that Rust has.

use std::fmt;

use half::{bf16, f16};
use serde::{Serialize, Serializer};

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $bits:literal;)*) => {
        /// The type of a tensor's elements.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types, reason = "the spelling of the format, and of the specifications that it cites")]
        #[non_exhaustive]
        pub enum DType {
            $($(#[$doc])* $variant,)*
        }

        impl DType {
            /// Every dtype.
            pub const ALL: &[DType] = &[$(DType::$variant),*];

            /// The size of an element in bits.
            pub const fn bits(self) -> u32 {
                match self { $(DType::$variant => $bits,)* }
            }

            /// The name that the format uses.
            pub const fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }

            /// The dtype of a name that the format uses.
            pub(crate) fn from_name(name: &str) -> Option<Self> {
                Some(match name {
                    $($name => DType::$variant,)*
                    _ => return None,
                })
            }
        }
    };
}

dtypes! {
    /// A boolean in a byte.
    BOOL = "BOOL", 8;
    /// 4-bit float, E2M1, two to a byte (OCP Microscaling Formats 1.0).
    F4 = "F4", 4;
    /// 6-bit float, E2M3, packed (OCP Microscaling Formats 1.0).
    F6_E2M3 = "F6_E2M3", 6;
    /// 6-bit float, E3M2, packed (OCP Microscaling Formats 1.0).
    F6_E3M2 = "F6_E3M2", 6;
    /// Unsigned 8-bit integer.
    U8 = "U8", 8;
    /// Signed 8-bit integer.
    I8 = "I8", 8;
    /// 8-bit float, E5M2 (OCP 8-bit Floating Point 1.0).
    F8_E5M2 = "F8_E5M2", 8;
    /// 8-bit float, E4M3 (OCP 8-bit Floating Point 1.0).
    F8_E4M3 = "F8_E4M3", 8;
    /// 8-bit power of two, E8M0, a scale (OCP Microscaling Formats 1.0).
    F8_E8M0 = "F8_E8M0", 8;
    /// 8-bit float, E4M3, finite with an unsigned zero (Noune et al., arXiv:2206.02915).
    F8_E4M3FNUZ = "F8_E4M3FNUZ", 8;
    /// 8-bit float, E5M2, finite with an unsigned zero (Noune et al., arXiv:2206.02915).
    F8_E5M2FNUZ = "F8_E5M2FNUZ", 8;
    /// Signed 16-bit integer.
    I16 = "I16", 16;
    /// Unsigned 16-bit integer.
    U16 = "U16", 16;
    /// 16-bit float, IEEE 754 binary16.
    F16 = "F16", 16;
    /// 16-bit float with the exponent of a 32-bit one.
    BF16 = "BF16", 16;
    /// Signed 32-bit integer.
    I32 = "I32", 32;
    /// Unsigned 32-bit integer.
    U32 = "U32", 32;
    /// 32-bit float, IEEE 754 binary32.
    F32 = "F32", 32;
    /// Complex number of two 32-bit floats.
    C64 = "C64", 64;
    /// 64-bit float, IEEE 754 binary64.
    F64 = "F64", 64;
    /// Signed 64-bit integer.
    I64 = "I64", 64;
    /// Unsigned 64-bit integer.
    U64 = "U64", 64;
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for DType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that a tensor's elements can be borrowed as: any bytes of a file are a value of it.
///
/// `bool` is not one, since bytes of a file may be other than 0 and 1.
pub trait Element: bytemuck::AnyBitPattern + sealed::Sealed {
    /// The dtype of tensors with such elements.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($element:ty = $dtype:ident;)*) => {$(
        impl sealed::Sealed for $element {}
        impl Element for $element {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

elements! {
    u8 = U8;
    i8 = I8;
    u16 = U16;
    i16 = I16;
    f16 = F16;
    bf16 = BF16;
    u32 = U32;
    i32 = I32;
    f32 = F32;
    u64 = U64;
    i64 = I64;
    f64 = F64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_are_those_of_the_format() {
        for &dtype in DType::ALL {
            let theirs: safetensors::Dtype = serde_json::from_str(&format!("{:?}", dtype.name())).unwrap();
            assert_eq!(DType::from_name(&theirs.to_string()), Some(dtype));
            assert_eq!(theirs.bitsize(), dtype.bits() as usize, "{dtype}");
        }
    }

    #[test]
    fn elements_have_the_size_of_their_dtype() {
        fn bits<T: Element>() -> u32 {
            assert_eq!(8 * size_of::<T>(), T::DTYPE.bits() as usize);
            T::DTYPE.bits()
        }
        assert_eq!(
            [bits::<u8>(), bits::<f16>(), bits::<bf16>(), bits::<f32>(), bits::<i64>()],
            [8, 16, 16, 32, 64]
        );
    }
}
