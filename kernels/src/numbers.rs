//! The number formats, each as two functions over bits: to F32, and from F32 where it is a target. `cuda/numbers.h` is the same
//! for devices, and `docs/kernels.md` says what is promised.
//!
//! There is no branch in them, only choices between values, so that a compiler can do several elements at once. That is why they are written out:
//! the functions of the `half` crate look up each time what the processor can do. The tests hold these to those.

use crate::types::Type;

/// A format that can be converted from.
pub(crate) trait Format {
    /// Its name.
    const TYPE: Type;
    /// Whether it has NaN.
    const HAS_NAN: bool = true;
    /// The largest magnitude that it has, infinity too, as the bits of an F32; or more than that.
    const MOST: u32 = INFINITY;
    /// The bytes of an element.
    type Bytes: Copy;

    /// The elements that lie in these bytes; a rest that is none is not looked at.
    fn elements(bytes: &[u8]) -> &[Self::Bytes];

    /// An element as the bits of an F32.
    fn to_f32(element: Self::Bytes) -> u32;

    /// Whether it is an infinity. An F64 can be finite though its F32 is not.
    fn is_infinite(element: Self::Bytes) -> bool {
        let _ = element;
        false
    }
}

/// A format that can be converted to.
pub(crate) trait Target: Format {
    /// Whether infinities of the source stay infinities, when values are not saturated.
    const HAS_INFINITY: bool = true;
    /// Magnitudes from here on, as the bits of an F32, round to more than the largest finite value.
    const LIMIT: u32;

    /// The elements that lie in these bytes, for writing.
    fn elements_mut(bytes: &mut [u8]) -> &mut [Self::Bytes];

    /// The nearest element, the even one of two. `saturating` concerns the 8-bit floats alone.
    fn from_f32(bits: u32, saturating: bool) -> Self::Bytes;
}

const SIGN: u32 = 1 << 31;
const INFINITY: u32 = 0x7f80_0000;
const QUIET: u32 = 0x7fc0_0000;

/// 2 to the power `n`, as the bits of an F32.
const fn power(n: i32) -> u32 {
    ((127 + n) as u32) << 23
}

/// Whether the bits of an F32 are a NaN.
pub(crate) const fn is_nan(bits: u32) -> bool {
    bits & !SIGN > INFINITY
}

/// From a magnitude with `MANTISSA` bits of mantissa and this bias to F32, exactly.
fn widen<const MANTISSA: i32, const BIAS: i32>(magnitude: u32) -> u32 {
    // A subnormal is what it adds to the smallest normal. One multiplication of all would do as well; processors are slow at those of subnormals, and
    // devices are not.
    let (shifted, smallest) = (magnitude << (23 - MANTISSA), power(1 - BIAS));
    let subnormal = (f32::from_bits(shifted | smallest) - f32::from_bits(smallest)).to_bits();
    let normal = shifted.wrapping_add(((127 - BIAS) as u32) << 23);
    if magnitude < 1 << MANTISSA { subnormal } else { normal }
}

/// From F32 to such a magnitude, to nearest even, subnormals too. Right up to the magnitude after the largest; the caller bounds it.
fn narrow<const MANTISSA: i32, const BIAS: i32>(magnitude: u32) -> u32 {
    // Adding 2^(24 - MANTISSA - BIAS) leaves the subnormal result in the lowest bits of the sum, rounded.
    let ruler = power(24 - MANTISSA - BIAS);
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(ruler)).to_bits().wrapping_sub(ruler);
    let odd = magnitude >> (23 - MANTISSA) & 1;
    let rebased = magnitude.wrapping_sub(((127 - BIAS) as u32) << 23);
    let normal = rebased.wrapping_add((1 << (22 - MANTISSA)) - 1).wrapping_add(odd) >> (23 - MANTISSA);
    if magnitude < power(1 - BIAS) { subnormal } else { normal }
}

macro_rules! format {
    ($name:ident, $bytes:literal $(, { $($constant:item)* })?, |$element:ident| $to_f32:expr $(, infinite: $infinite:expr)?) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "the spelling of the format")]
        pub(crate) struct $name;

        impl Format for $name {
            const TYPE: Type = Type::$name;
            $($($constant)*)?
            type Bytes = [u8; $bytes];

            fn elements(bytes: &[u8]) -> &[[u8; $bytes]] {
                bytes.as_chunks().0
            }

            #[inline(always)]
            fn to_f32($element: [u8; $bytes]) -> u32 {
                $to_f32
            }

            $(#[inline(always)]
            fn is_infinite($element: [u8; $bytes]) -> bool {
                $infinite
            })?
        }
    };
}

macro_rules! target {
    ($name:ident, $bytes:literal, limit: $limit:literal $(, { $constant:item })?, |$bits:ident, $saturating:pat_param| $from_f32:expr) => {
        impl Target for $name {
            $($constant)?
            const LIMIT: u32 = $limit;

            fn elements_mut(bytes: &mut [u8]) -> &mut [[u8; $bytes]] {
                bytes.as_chunks_mut().0
            }

            #[inline(always)]
            fn from_f32($bits: u32, $saturating: bool) -> [u8; $bytes] {
                $from_f32
            }
        }
    };
}

macro_rules! integers {
    ($($name:ident = $integer:ty, $bytes:literal;)*) => {$(
        format!($name, $bytes, { const HAS_NAN: bool = false; const MOST: u32 = power(8 * $bytes); },
            |element| (<$integer>::from_le_bytes(element) as f32).to_bits());
    )*};
}

integers! {
    U8 = u8, 1;
    I8 = i8, 1;
    U16 = u16, 2;
    I16 = i16, 2;
    U32 = u32, 4;
    I32 = i32, 4;
    U64 = u64, 8;
    I64 = i64, 8;
}

format!(
    BOOL,
    1,
    {
        const HAS_NAN: bool = false;
        const MOST: u32 = power(0);
    },
    |element| if element[0] == 0 { 0 } else { power(0) }
);

format!(F64, 8,
    |element| {
        let raw = u64::from_le_bytes(element);
        let nan = (raw >> 32) as u32 & SIGN | QUIET | (raw >> 29) as u32 & 0x7f_ffff;
        if f64::from_bits(raw).is_nan() { nan } else { (f64::from_bits(raw) as f32).to_bits() }
    },
    infinite: f64::from_le_bytes(element).is_infinite());

format!(F32, 4, |element| u32::from_le_bytes(element),
    infinite: u32::from_le_bytes(element) & !SIGN == INFINITY);
target!(F32, 4, limit: 0x7f80_0000, |bits, _| bits.to_le_bytes());

format!(F16, 2,
    |element| {
        let raw = u32::from(u16::from_le_bytes(element));
        let magnitude = raw & 0x7fff;
        // Infinity and NaN are as far beyond what they are widened to as that is beyond the magnitude's bits.
        let beyond = if magnitude >= 0x7c00 { 112 << 23 } else { 0 };
        let quiet = if magnitude > 0x7c00 { 1 << 22 } else { 0 };
        (raw & 0x8000) << 16 | (widen::<10, 15>(magnitude) + beyond) | quiet
    },
    infinite: u16::from_le_bytes(element) & 0x7fff == 0x7c00);
// From 65520 on, which is halfway to 2^16.
target!(F16, 2, limit: 0x477f_f000, |bits, _| {
    let magnitude = bits & !SIGN;
    let beyond = if magnitude > INFINITY { 0x7e00 | bits >> 13 & 0x3ff } else { 0x7c00 };
    let rounded = if magnitude >= Self::LIMIT { beyond } else { narrow::<10, 15>(magnitude) };
    ((bits >> 16 & 0x8000 | rounded) as u16).to_le_bytes()
});

format!(BF16, 2, |element| u32::from(u16::from_le_bytes(element)) << 16,
    infinite: u16::from_le_bytes(element) & 0x7fff == 0x7f80);
target!(BF16, 2, limit: 0x7f7f_8000, |bits, _| {
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Shifted as a signed number, which is how x86-64 puts halves of words together.
    (((if is_nan(bits) { bits | 1 << 22 } else { rounded }) as i32 >> 16) as u16).to_le_bytes()
});

format!(
    F8_E4M3,
    1,
    {
        const MOST: u32 = 0x43e0_0000;
    },
    |element| {
        let raw = u32::from(element[0]);
        let magnitude = if raw & 0x7f == 0x7f { 0x7ff0_0000 } else { widen::<3, 7>(raw & 0x7f) };
        (raw & 0x80) << 24 | magnitude
    }
);
// Beyond 464, which is halfway from 448 to what would be 480 and is NaN.
target!(F8_E4M3, 1, limit: 0x43e8_0001, { const HAS_INFINITY: bool = false; }, |bits, saturating| {
    let magnitude = bits & !SIGN;
    let beyond = if saturating && magnitude <= INFINITY { 0x7e } else { 0x7f };
    let rounded = if magnitude >= Self::LIMIT { beyond } else { narrow::<3, 7>(magnitude) };
    [(bits >> 24 & 0x80 | rounded) as u8]
});

format!(F8_E5M2, 1,
    |element| {
        let raw = u32::from(element[0]);
        let nan = if raw & 3 == 0 { INFINITY } else { QUIET | (raw & 3) << 21 };
        (raw & 0x80) << 24 | if raw & 0x7f >= 0x7c { nan } else { widen::<2, 15>(raw & 0x7f) }
    },
    infinite: element[0] & 0x7f == 0x7c);
// From 61440 on, which is halfway from 57344 to 2^16.
target!(F8_E5M2, 1, limit: 0x4770_0000, |bits, saturating| {
    let magnitude = bits & !SIGN;
    let infinite = if saturating { 0x7b } else { 0x7c };
    let beyond = if magnitude > INFINITY { 0x7f } else { infinite };
    let rounded = if magnitude >= Self::LIMIT { beyond } else { narrow::<2, 15>(magnitude) };
    [(bits >> 24 & 0x80 | rounded) as u8]
});

// Finite, with one zero; NaN is where the negative zero would be.
format!(
    F8_E4M3FNUZ,
    1,
    {
        const MOST: u32 = 0x4370_0000;
    },
    |element| {
        let raw = u32::from(element[0]);
        if raw == 0x80 { QUIET } else { (raw & 0x80) << 24 | widen::<3, 8>(raw & 0x7f) }
    }
);
format!(
    F8_E5M2FNUZ,
    1,
    {
        const MOST: u32 = 0x4760_0000;
    },
    |element| {
        let raw = u32::from(element[0]);
        if raw == 0x80 { QUIET } else { (raw & 0x80) << 24 | widen::<2, 16>(raw & 0x7f) }
    }
);

format!(
    F8_E8M0,
    1,
    {
        const MOST: u32 = power(127);
    },
    |element| match element[0] {
        0xff => QUIET,
        // 2^-127 is subnormal as an F32.
        0 => 0x0040_0000,
        exponent => u32::from(exponent) << 23,
    }
);
