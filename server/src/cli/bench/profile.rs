//! Where the time of steps goes, by op.

use std::time::Duration;

use anyhow::Result;
use passerelle_models::ops::{Op, OpTimes};
use serde::Serialize;

use super::measure::Measured;
use crate::cli::output;

/// What each op took, in the order of [`Op::ALL`].
pub(super) type Spent = [Duration; Op::ALL.len()];

/// The ops that took time, the longest of decoding first, and `other`: scheduling, sampling and what is not an op.
#[derive(Debug, Serialize)]
pub(super) struct Profile(Vec<OpShare>);

#[derive(Debug, Serialize)]
struct OpShare {
    op: &'static str,
    /// Of the time of steps that ran any part of a prompt.
    prefill_share: f64,
    /// Of the time of steps that only generated.
    decode_share: f64,
}

pub(super) fn totals(times: &OpTimes) -> Spent {
    Op::ALL.map(|op| times.total(op))
}

impl Profile {
    pub(super) fn of(measured: &Measured) -> Self {
        let mut shares: Vec<OpShare> = Op::ALL
            .into_iter()
            .map(|op| OpShare {
                op: op.name(),
                prefill_share: share(measured.prefill_ops[op as usize], measured.prefill_time),
                decode_share: share(measured.decode_ops[op as usize], measured.decode_time),
            })
            .filter(|op| op.prefill_share + op.decode_share > 0.0)
            .collect();
        shares.sort_by(|one, other| other.decode_share.total_cmp(&one.decode_share));
        let rest = |part: fn(&OpShare) -> f64| (1.0 - shares.iter().map(part).sum::<f64>()).max(0.0);
        let (prefill_share, decode_share) = (rest(|op| op.prefill_share), rest(|op| op.decode_share));
        shares.push(OpShare { op: "other", prefill_share, decode_share });
        Self(shares)
    }

    pub(super) fn print(&self, batch: usize) -> Result<()> {
        output::line(format_args!("\n{:<16}{:>10}{:>10}", format!("BATCH OF {batch}"), "PREFILL", "DECODE"))?;
        self.0.iter().try_for_each(|share| {
            let percent = |share: f64| format!("{:.1}%", share * 100.0);
            let (prefill, decode) = (percent(share.prefill_share), percent(share.decode_share));
            output::line(format_args!("{:<16}{prefill:>10}{decode:>10}", share.op))
        })
    }
}

fn share(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { part.as_secs_f64() / whole.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_op_took_is_other() {
        let mut measured = Measured {
            prefill_time: Duration::from_millis(10),
            decode_time: Duration::from_millis(20),
            ..Measured::default()
        };
        measured.prefill_ops[Op::Linear as usize] = Duration::from_millis(9);
        measured.decode_ops[Op::Linear as usize] = Duration::from_millis(10);
        measured.decode_ops[Op::Attention as usize] = Duration::from_millis(5);
        let shares: Vec<_> = Profile::of(&measured)
            .0
            .iter()
            .map(|op| (op.op, (op.prefill_share * 100.0).round(), op.decode_share))
            .collect();
        assert_eq!(shares, [("linear", 90.0, 0.5), ("attention", 0.0, 0.25), ("other", 10.0, 0.25)]);
    }
}
