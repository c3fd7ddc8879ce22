//! Byte counts as people read them, for errors and reports.

use std::fmt;

/// Displays a number of bytes with a binary unit: `512 B`, `64.0 MiB`, `14.9 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The number as it is shown beside others that it is compared with: exactly, as `131071 B`, if one of them differs and reads the same.
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
        let unit = UNITS.get(power).copied().unwrap_or("EiB");
        write!(f, "{:.1} {unit}", self.0 as f64 / (1u64 << (10 * (power + 1))) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

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
