//! Sizes and periods as people write them: `2GiB`, `512MB`, `30s`, `250ms`; and counts in 32 bits.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

const BYTE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];
const PERIOD_UNITS_MS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl ByteSize {
    /// No less, as it can be written where a size is asked for.
    pub fn written_up(self) -> String {
        format!("{}MiB", self.0.div_ceil(1 << 20))
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        in_unit(text, &BYTE_UNITS)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a size; write a whole number and a unit, like 512MiB or 2GiB"))
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        in_unit(text, &PERIOD_UNITS_MS)
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(|| format!("`{text}` is not a period; write a whole number and ms, s, m, h or d, like 30s"))
    }
}

/// In 32 bits; more than they hold is as good as the most that they do.
pub(crate) fn saturating_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// `None` for an unknown unit, no digits, or a product that does not fit.
fn in_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..=1023 => write!(f, "{} B", self.0),
            1024..=1_048_575 => write!(f, "{:.1} KiB", bytes / 1024.0),
            1_048_576..=1_073_741_823 => write!(f, "{:.1} MiB", bytes / 1_048_576.0),
            _ => write!(f, "{:.2} GiB", bytes / 1_073_741_824.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_str(TextVisitor { like: "a size in quotes, like \"512MiB\"", read: str::parse::<Self> })
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor { like: "a period in quotes, like \"30s\"", read: str::parse::<Self> })
    }
}

/// A text that is read as what it says; `like` tells whoever wrote something else.
pub(crate) struct TextVisitor<T> {
    pub(crate) like: &'static str,
    pub(crate) read: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.like)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        assert_eq!("2GiB".parse(), Ok(ByteSize(2 << 30)));
        assert_eq!("3 MB".parse(), Ok(ByteSize(3_000_000)));
        assert_eq!("17".parse(), Ok(ByteSize(17)));
        assert_eq!("1 TiB".parse(), Ok(ByteSize(1 << 40)));
    }

    #[test]
    fn a_size_that_is_written_up_is_read_as_no_less() {
        for (bytes, written) in [(1, "1MiB"), (1 << 20, "1MiB"), ((1 << 20) + 1, "2MiB"), (3 << 30, "3072MiB")] {
            assert_eq!(ByteSize(bytes).written_up(), written);
            assert!(written.parse::<ByteSize>().expect("a size") >= ByteSize(bytes));
        }
    }

    #[test]
    fn a_size_that_cannot_be_read_says_how_to_write_one() {
        for text in ["", "GiB", "1.5GiB", "-1", "2 gigs", "99999999999999999999", "99999999999 TiB"] {
            let problem = text.parse::<ByteSize>().expect_err(text);
            assert!(problem.contains("2GiB"), "{problem}");
        }
    }

    #[test]
    fn periods_need_a_unit() {
        assert_eq!("250ms".parse(), Ok(Period(Duration::from_millis(250))));
        assert_eq!("2m".parse(), Ok(Period(Duration::from_secs(120))));
        assert_eq!("90d".parse(), Ok(Period(Duration::from_secs(90 * 86_400))));
        assert!("30".parse::<Period>().is_err());
    }
}
