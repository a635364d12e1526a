//! The ranking as CSV (RFC 4180): one line for each checkpoint and metric.

use anyhow::Result;
use passerelle::evaluation::Comparison;
use passerelle::evaluation::comparison::{Measured, Ranked};

use crate::cli::output;

pub(super) fn print(comparison: &Comparison) -> Result<()> {
    output::line("rank,checkpoint,digest,step,metric,value,low,high,from_above,from_above_low,from_above_high")?;
    for (place, ranked) in comparison.ranking.iter().enumerate() {
        for measured in &ranked.metrics {
            output::line(line(place + 1, ranked, measured))?;
        }
    }
    Ok(())
}

fn line(place: usize, ranked: &Ranked, measured: &Measured) -> String {
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let (interval, above) = (measured.interval, measured.from_above);
    [
        place.to_string(),
        quoted(&ranked.name),
        ranked.digest.to_string(),
        ranked.step.map_or_else(String::new, |step| step.to_string()),
        measured.metric.name().to_owned(),
        interval.value.to_string(),
        number(interval.bounds.map(|bounds| bounds.low)),
        number(interval.bounds.map(|bounds| bounds.high)),
        number(above.map(|above| above.value)),
        number(above.and_then(|above| above.bounds).map(|bounds| bounds.low)),
        number(above.and_then(|above| above.bounds).map(|bounds| bounds.high)),
    ]
    .join(",")
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_name_cannot_break_out_of_its_column() {
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(quoted("step-1"), "step-1");
    }
}
