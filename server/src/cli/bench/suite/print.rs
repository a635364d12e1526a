use anyhow::Result;
use passerelle::config::ByteSize;

use super::super::{Row, in_threads};
use super::{Prefill, Report, ShapeReport};
use crate::cli::output;

pub(super) fn print(report: &Report) -> Result<()> {
    output::line(format_args!(
        "{}, {}, {} kernels; {:.1} GB/s from memory, {:.0} GFLOP/s",
        report.device,
        in_threads(report.threads),
        report.kernels,
        report.memory_bandwidth_bytes_per_s / 1e9,
        report.multiply_add_flops_per_s / 1e9
    ))?;
    report.shapes.iter().try_for_each(shape)
}

fn shape(report: &ShapeReport) -> Result<()> {
    output::line(format_args!(
        "\n{}: {} of random {} weights; sequences of {} prompt and {} generated tokens",
        report.shape,
        ByteSize(report.weight_bytes),
        report.dtype,
        report.context,
        report.generate_tokens
    ))?;
    output::line(format_args!(
        "{:>6}{:>9}{:>16}{:>10}{:>14}",
        "BATCH", "AT ONCE", "DECODE tok/s", "OF LIMIT", "OF BANDWIDTH"
    ))?;
    for Row { batch, decoding, decode_tokens_per_s, decode_share_of_limit, share_of_bandwidth, .. } in &report.sweep {
        let [limit, bandwidth] = [decode_share_of_limit, share_of_bandwidth].map(|share| share * 100.0);
        output::line(format_args!(
            "{batch:>6}{decoding:>9}{decode_tokens_per_s:>16.1}{limit:>9.0}%{bandwidth:>13.0}%"
        ))?;
    }
    output::line(format_args!("{:>6}{:>16}{:>10}", "PROMPT", "PREFILL tok/s", "OF LIMIT"))?;
    for Prefill { prompt_tokens, tokens_per_s, share_of_limit } in &report.prefill {
        let limit = share_of_limit * 100.0;
        output::line(format_args!("{prompt_tokens:>6}{tokens_per_s:>16.1}{limit:>9.0}%"))?;
    }
    report.left_out.iter().try_for_each(|what| output::line(format_args!("left out: {what}")))?;
    let is = &report.saturation;
    output::line(format_args!(
        "over HTTP: {} clients, {} requests, {:.1} tok/s generated ({} in {:.1} s, after {} of prompts)",
        is.streams, is.requests, is.generated_tokens_per_s, is.generated_tokens, is.seconds, is.prompt_tokens
    ))
}
