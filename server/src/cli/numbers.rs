//! Numbers as options, refused in words of whoever writes them.

use std::str::FromStr;

/// For types that are never 0.
pub(crate) fn count<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("`{text}` is no whole number above 0 that fits here"))
}

pub(crate) fn number(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(|| format!("`{text}` is no number"))
}
