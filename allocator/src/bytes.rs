//! Byte counts as people read them, for errors and reports.

use std::fmt;

/// Displays a number of bytes with a binary unit: `512 B`, `64.0 MiB`, `14.9 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

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
    fn units_change_at_powers_of_1024() {
        let shown = [0, 1023, 1024, 1536, 1 << 20, 25 << 30, u64::MAX].map(|n| Bytes(n).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "25.0 GiB", "16.0 EiB"]);
    }
}
