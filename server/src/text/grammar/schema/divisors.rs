//! What `multipleOf` asks for: for each remainder the compiler makes a state.

use serde_json::Number;

use super::check::refused;
use crate::text::grammar::GrammarError;

/// The remainders that all divisors of a schema may have together.
const MAX_REMAINDERS: u64 = 10_000;
const MULTIPLE_OF: &str = "multipleOf";

#[derive(Default)]
pub(super) struct Divisors {
    all: Vec<Divisor>,
    /// Their digits, added up.
    remainders: u64,
}

/// `digits / 10^places`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Divisor {
    digits: u64,
    places: u32,
}

impl Divisors {
    pub(super) fn add(&mut self, divisor: &Number, place: &str) -> Result<(), GrammarError> {
        let Some(written) = divisor.as_f64().filter(|divisor| *divisor > 0.0) else {
            return Err(refused(MULTIPLE_OF, place, "must be above 0"));
        };
        let divisor = Divisor::of(written);
        self.remainders = self.remainders.saturating_add(divisor.digits);
        if self.remainders > MAX_REMAINDERS {
            let why = format!(
                "is {written}: without their decimal points, divisors may add up to {MAX_REMAINDERS} in a schema"
            );
            return Err(refused(MULTIPLE_OF, place, why));
        }
        self.all.push(divisor);
        Ok(())
    }

    /// In a schema that `composes` others, several divisors may become one: their least common multiple.
    pub(super) fn check(&self, composes: bool) -> Result<(), GrammarError> {
        let places = self.all.iter().map(|divisor| divisor.places).max().unwrap_or(0);
        let scaled = self.all.iter().map(|divisor| divisor.at(places));
        let together = scaled.reduce(least_common_multiple).unwrap_or(0);
        if !composes || self.all.len() < 2 || together <= MAX_REMAINDERS {
            return Ok(());
        }
        let why = format!(
            "is not supported where schemas compose and the least common multiple of their divisors, without decimal \
             point, is above {MAX_REMAINDERS}"
        );
        Err(refused(MULTIPLE_OF, "#", why))
    }
}

impl Divisor {
    /// As the compiler reads it: digits until nothing is left, however many these are.
    fn of(mut value: f64) -> Self {
        let mut places = 0;
        while value.fract() != 0.0 {
            value *= 10.0;
            places += 1;
        }
        let mut divisor = Self { digits: value as u64, places };
        while divisor.places > 0 && divisor.digits.is_multiple_of(10) {
            divisor = Self { digits: divisor.digits / 10, places: divisor.places - 1 };
        }
        divisor
    }

    /// Its digits with more places after the point.
    fn at(self, places: u32) -> u64 {
        10_u64.checked_pow(places - self.places).and_then(|scale| self.digits.checked_mul(scale)).unwrap_or(u64::MAX)
    }
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    (a / greatest_common_divisor(a, b)).saturating_mul(b)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
