//! [`Bytes`]: human-readable byte counts, for errors and reports.

use std::fmt;

/// Displays a number of bytes with a binary unit: `512 B`, `64.0 MiB`, `14.9 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The number as shown next to `others`: exact, as `131071 B`, if one of them differs but would read the same.
    pub fn beside(self, others: &[u64]) -> String {
        let rounded = self.to_string();
        let is_alike = |other: &u64| *other != self.0 && Self(*other).to_string() == rounded;
        if others.iter().any(is_alike) { format!("{} B", self.0) } else { rounded }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        // 1024^(power+1) <= bytes, so the quotient is between 1 and 1024.
        let power = (self.0.ilog2() / 10).saturating_sub(1) as usize;
        let rounded = format!("{:.1}", self.0 as f64 / (1u64 << (10 * (power + 1))) as f64);
        // Rounding may carry into the next unit. The largest unit has no more than 16.0.
        let (number, power) = if rounded == "1024.0" { ("1.0", power + 1) } else { (&*rounded, power) };
        let unit = UNITS.get(power).copied().unwrap_or("EiB");
        write!(f, "{number} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Bytes;

    /// Numbers of all magnitudes, and those around powers of two.
    fn numbers() -> impl Strategy<Value = u64> {
        let near =
            (0u32..64, -2000i64..2000).prop_map(|(power, off)| (1u64 << power).wrapping_add_signed(off));
        prop_oneof![any::<u64>(), near, (0u32..64, any::<u64>()).prop_map(|(shift, n)| n >> shift)]
    }

    proptest! {
        #[test]
        fn rounded_numbers_stay_below_the_next_unit(bytes in numbers()) {
            let shown = Bytes(bytes).to_string();
            let number: f64 = shown.split(' ').next().unwrap().parse().unwrap();
            prop_assert!(number < 1024.0, "{bytes}: {shown}");
        }

        #[test]
        fn different_numbers_beside_each_other_never_read_the_same(a in numbers(), off in -3000i64..3000) {
            let b = a.wrapping_add_signed(off);
            prop_assume!(a != b);
            let shown = [Bytes(a).beside(&[b]), Bytes(b).beside(&[a])];
            prop_assert_ne!(&shown[0], &shown[1]);
        }
    }

    #[test]
    fn rounding_carries_into_the_next_unit() {
        let shown = |a: u64, b: u64| [Bytes(a).beside(&[b]), Bytes(b).beside(&[a])];
        assert_eq!(Bytes((1 << 20) - 1).to_string(), "1.0 MiB");
        assert_eq!(Bytes((1 << 60) - 1).to_string(), "1.0 EiB");
        assert_eq!(shown(1 << 20, (1 << 20) - 1), ["1048576 B", "1048575 B"]);
        assert_eq!(shown(1 << 30, (1 << 30) - 1), ["1073741824 B", "1073741823 B"]);
    }

    #[test]
    fn numbers_that_differ_never_read_the_same() {
        let shown = |a: u64, b: u64| [Bytes(a).beside(&[b]), Bytes(b).beside(&[a])];
        assert_eq!(shown(131_071, 131_072), ["131071 B", "131072 B"]);
        assert_eq!(shown(131_072, 131_072), ["128.0 KiB", "128.0 KiB"]);
        assert_eq!(shown(1 << 20, 1 << 30), ["1.0 MiB", "1.0 GiB"]);
        assert_eq!(shown(u64::MAX, u64::MAX - 1), ["18446744073709551615 B", "18446744073709551614 B"]);
        assert_eq!(Bytes(1 << 30).beside(&[5, (1 << 30) + 1]), "1073741824 B");
    }

    #[test]
    fn units_change_at_powers_of_1024() {
        let shown = [0, 1023, 1024, 1536, 1 << 20, 25 << 30, u64::MAX].map(|n| Bytes(n).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "25.0 GiB", "16.0 EiB"]);
    }
}
