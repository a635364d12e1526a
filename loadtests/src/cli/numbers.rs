//! Numbers of the command line, within bounds: what no load has is a slip of the hand, and is told before anything is sent.

use passerelle_loadtests::arrivals::MAX_RATE;
use passerelle_loadtests::lengths::MAX_TOKENS;
use passerelle_loadtests::scenario::{MAX_DURATION_S, MAX_RATE_SCALE};

const MAX_FACTOR: f64 = 1000.0;
const MAX_WAIT_S: f64 = 3600.0;

/// How long something lasts, in seconds.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    positive(text, MAX_DURATION_S)
}

/// How long something may take, in seconds; at once, too.
pub(super) fn wait(text: &str) -> Result<f64, String> {
    let wait: f64 = number(text)?;
    if (0.0..=MAX_WAIT_S).contains(&wait) { Ok(wait) } else { Err(format!("must be 0 to {MAX_WAIT_S}")) }
}

/// What is not counted at a start, in seconds.
pub(super) fn warmup(text: &str) -> Result<f64, String> {
    let seconds: f64 = number(text)?;
    if (0.0..=MAX_DURATION_S).contains(&seconds) { Ok(seconds) } else { Err(format!("must be 0 to {MAX_DURATION_S}")) }
}

pub(super) fn milliseconds(text: &str) -> Result<f64, String> {
    positive(text, MAX_DURATION_S * 1000.0)
}

/// Requests per second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    positive(text, MAX_RATE)
}

pub(super) fn rate_scale(text: &str) -> Result<f64, String> {
    positive(text, MAX_RATE_SCALE)
}

/// How many times as much.
pub(super) fn factor(text: &str) -> Result<f64, String> {
    positive(text, MAX_FACTOR)
}

/// Of one text.
pub(super) fn tokens() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_TOKENS))
}

fn positive(text: &str, most: f64) -> Result<f64, String> {
    let value: f64 = number(text)?;
    if value > 0.0 && value <= most { Ok(value) } else { Err(format!("must be above 0 and at most {most}")) }
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "is not a number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_load_has_is_refused() {
        for parse in [seconds, milliseconds, rate, rate_scale, factor] {
            for wrong in ["0", "-1", "nan", "inf", "1e15", "many", ""] {
                assert!(parse(wrong).is_err(), "{wrong}");
            }
            assert_eq!(parse("2.5"), Ok(2.5));
        }
        for parse in [wait, warmup] {
            assert_eq!(parse("0"), Ok(0.0));
            assert!(["-1", "nan", "1e15"].iter().all(|wrong| parse(wrong).is_err()));
        }
    }
}
