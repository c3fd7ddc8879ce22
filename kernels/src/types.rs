//! [`Type`]: the element types.

use std::fmt;

macro_rules! types {
    ($($(#[$doc:meta])* $variant:ident = $bytes:literal;)*) => {
        /// The type of an element, by the name that the safetensors format has for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types, reason = "the spelling of the format, and of the specifications that it cites")]
        #[non_exhaustive]
        pub enum Type {
            $($(#[$doc])* $variant,)*
        }

        impl Type {
            /// Every type.
            pub const ALL: &[Type] = &[$(Type::$variant),*];

            /// The size of an element in bytes.
            pub const fn bytes(self) -> usize {
                match self { $(Type::$variant => $bytes,)* }
            }

            /// The name that the format uses.
            pub const fn name(self) -> &'static str {
                match self { $(Type::$variant => stringify!($variant),)* }
            }
        }
    };
}

types! {
    /// 64-bit float, IEEE 754 binary64.
    F64 = 8;
    /// 32-bit float, IEEE 754 binary32.
    F32 = 4;
    /// 16-bit float, IEEE 754 binary16.
    F16 = 2;
    /// 16-bit float with the exponent of a 32-bit one.
    BF16 = 2;
    /// 8-bit float, E4M3 (OCP 8-bit Floating Point 1.0): no infinity, one NaN of each sign.
    F8_E4M3 = 1;
    /// 8-bit float, E5M2 (OCP 8-bit Floating Point 1.0).
    F8_E5M2 = 1;
    /// 8-bit float, E4M3, finite with an unsigned zero (Noune et al., arXiv:2206.02915).
    F8_E4M3FNUZ = 1;
    /// 8-bit float, E5M2, finite with an unsigned zero (Noune et al., arXiv:2206.02915).
    F8_E5M2FNUZ = 1;
    /// 8-bit power of two, E8M0, a scale (OCP Microscaling Formats 1.0).
    F8_E8M0 = 1;
    /// Unsigned 8-bit integer.
    U8 = 1;
    /// Signed 8-bit integer.
    I8 = 1;
    /// Unsigned 16-bit integer.
    U16 = 2;
    /// Signed 16-bit integer.
    I16 = 2;
    /// Unsigned 32-bit integer.
    U32 = 4;
    /// Signed 32-bit integer.
    I32 = 4;
    /// Unsigned 64-bit integer.
    U64 = 8;
    /// Signed 64-bit integer.
    I64 = 8;
    /// A boolean in a byte; any byte but 0 is true, which converts to 1.
    BOOL = 1;
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
