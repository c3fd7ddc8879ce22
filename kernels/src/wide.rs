//! The same loops with longer vectors, where the processor has them: the compiler makes 256 bits of what the baseline of x86-64 does with 128. Every
//! operation is the same one, so the results are too.
//!
//! # Invariant
//! - **X1** [`functions`] names the functions of this file only where the processor said that it has AVX2.
#![allow(unsafe_code)]

use crate::convert::{Counts, Functions, by_element, count};
use crate::numbers::{Format, Target};

/// The functions of a pair, if this processor has longer vectors.
#[cfg(target_arch = "x86_64")]
pub(crate) fn functions<S: Format, T: Target>() -> Option<Functions> {
    is_x86_feature_detected!("avx2")
        .then_some(Functions { convert: avx2::convert::<S, T>, count: avx2::count::<S, T> })
}

/// There is nothing longer.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn functions<S: Format, T: Target>() -> Option<Functions> {
    None
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Counts, Format, Target};

    pub(super) fn convert<S: Format, T: Target>(source: &[u8], target: &mut [u8], saturating: bool) {
        // SAFETY: X1.
        unsafe { convert_wide::<S, T>(source, target, saturating) }
    }

    #[target_feature(enable = "avx2")]
    fn convert_wide<S: Format, T: Target>(source: &[u8], target: &mut [u8], saturating: bool) {
        super::by_element::<S, T>(source, target, saturating);
    }

    pub(super) fn count<S: Format, T: Target>(source: &[u8], saturating: bool) -> Counts {
        // SAFETY: X1.
        unsafe { count_wide::<S, T>(source, saturating) }
    }

    #[target_feature(enable = "avx2")]
    fn count_wide<S: Format, T: Target>(source: &[u8], saturating: bool) -> Counts {
        super::count::<S, T>(source, saturating)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::{BF16, F8_E4M3, F8_E5M2, F16, F32, F64, I16, I64, U32};

    /// Bits of all kinds: every exponent, and NaN of both kinds among them.
    fn bytes() -> Vec<u8> {
        let noise = (0..40_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n as u32 % 64));
        noise.chain([0, u64::MAX, 1 << 63, 0x7ff8 << 48, 0x7ff0 << 48]).flat_map(u64::to_le_bytes).collect()
    }

    fn same<S: Format, T: Target>() {
        let Some(wide) = functions::<S, T>() else { return };
        let bytes = bytes();
        // Lengths that are no multiple of a vector's, too.
        for elements in [0, 1, 7, 31, 33, 4099, bytes.len() / S::TYPE.bytes()] {
            let source = &bytes[..elements * S::TYPE.bytes()];
            for saturating in [false, true] {
                let mut by = [vec![0; elements * T::TYPE.bytes()], vec![0; elements * T::TYPE.bytes()]];
                by_element::<S, T>(source, &mut by[0], saturating);
                (wide.convert)(source, &mut by[1], saturating);
                assert!(by[0] == by[1], "{} to {}, {elements} elements", S::TYPE, T::TYPE);
                assert_eq!(count::<S, T>(source, saturating), (wide.count)(source, saturating));
            }
        }
    }

    #[test]
    fn longer_vectors_give_the_same_bytes_and_counts() {
        fn from<S: Format>() {
            same::<S, F32>();
            same::<S, F16>();
            same::<S, BF16>();
            same::<S, F8_E4M3>();
            same::<S, F8_E5M2>();
        }
        from::<F64>();
        from::<F32>();
        from::<F16>();
        from::<BF16>();
        from::<F8_E5M2>();
        from::<I16>();
        from::<U32>();
        from::<I64>();
    }
}
