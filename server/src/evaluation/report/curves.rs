//! Each metric over the run: by step where steps are known, else in the order in which the files were named.

use std::fmt::Write;

use super::markup::{escaped, number};
use super::plot::{Frame, Scale};
use crate::evaluation::bootstrap::Interval;
use crate::evaluation::comparison::{Comparison, Ranked};
use crate::evaluation::metric::Metric;

const FRAME: Frame = Frame { left: 62.0, top: 14.0, right: 412.0, bottom: 196.0 };
/// Names below an axis without steps stay readable up to here.
const MOST_NAMES: usize = 8;

/// Where each checkpoint stands along the run.
struct Run<'a> {
    /// With its place; in order.
    stops: Vec<(f64, &'a Ranked)>,
    marks: Vec<(f64, String)>,
    has_steps: bool,
}

pub(super) fn section(comparison: &Comparison) -> String {
    let run = Run::of(&comparison.ranking);
    let plots: String = comparison.metrics().map(|metric| plot(&run, metric, &comparison.title(metric))).collect();
    let note = if run.has_steps {
        "Over the steps of the run, with the 95 % interval around."
    } else {
        "In the order in which the checkpoints were given: not all of their names end with a step (--step NAME=STEP says it)."
    };
    format!(
        "<section>\n<h2>Over the run</h2>\n<p class=\"note\">{note}</p>\n<div class=\"plots\">\n{plots}</div>\n</section>\n"
    )
}

impl<'a> Run<'a> {
    fn of(ranking: &'a [Ranked]) -> Self {
        let steps: Option<Vec<u64>> = ranking.iter().map(|ranked| ranked.step).collect();
        let mut order: Vec<&Ranked> = ranking.iter().collect();
        let Some(steps) = steps else {
            order.sort_by_key(|ranked| ranked.given);
            let scale = Scale::over([0.0, order.len() as f64 - 1.0].into_iter(), FRAME.across());
            let stops: Vec<_> = (0..).map(|index: u32| scale.at(f64::from(index))).zip(order).collect();
            let every = stops.len().div_ceil(MOST_NAMES);
            let marks = stops.iter().step_by(every).map(|(x, ranked)| (*x, shortened(&ranked.name))).collect();
            return Self { stops, marks, has_steps: false };
        };
        order.sort_by_key(|ranked| ranked.step);
        let scale = Scale::over(steps.iter().map(|step| *step as f64), FRAME.across()).not_below(0.0);
        let marks = scale.marks(5).into_iter().map(|mark| (scale.at(mark), step_label(mark))).collect();
        let place = |ranked: &&'a Ranked| (scale.at(ranked.step.unwrap_or(0) as f64), *ranked);
        Self { stops: order.iter().map(place).collect(), marks, has_steps: true }
    }
}

fn plot(run: &Run, metric: Metric, title: &str) -> String {
    let points: Vec<(f64, &Ranked, Interval)> =
        run.stops.iter().filter_map(|(x, ranked)| Some((*x, *ranked, ranked.measured(metric)?.interval))).collect();
    let scale = Scale::over(points.iter().flat_map(|(.., is)| is.span()), FRAME.upwards());
    let scale = if metric.is_share() { scale.not_below(0.0) } else { scale };
    let place = |x: f64, value: f64| format!("{x:.1},{:.1}", scale.at(value));
    let line: Vec<String> = points.iter().map(|(x, _, is)| place(*x, is.value)).collect();
    let upper = points.iter().map(|(x, _, is)| place(*x, is.span()[1]));
    let lower = points.iter().rev().map(|(x, _, is)| place(*x, is.span()[0]));
    let band: Vec<String> = upper.chain(lower).collect();
    let mut dots = String::new();
    for (x, ranked, interval) in &points {
        let _ = write!(
            dots,
            "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"4.5\"><title>{}: {} {}</title></circle>",
            scale.at(interval.value),
            escaped(&ranked.name),
            metric.shown(interval.value),
            interval.shown(|value| metric.shown(value))
        );
    }
    let shown =
        |value: f64| if metric.is_share() { format!("{} %", number(value * 100.0, 0)) } else { number(value, 2) };
    format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 424 226\" role=\"img\">{}{}<polygon class=\"band\" \
         points=\"{}\"/><polyline class=\"curve\" points=\"{}\"/>{dots}</svg></figure>\n",
        escaped(title),
        FRAME.step_axis(&run.marks),
        FRAME.value_axis(&scale, shown),
        band.join(" "),
        line.join(" ")
    )
}

/// 1500 and 40k.
fn step_label(step: f64) -> String {
    if step >= 10_000.0 { format!("{}k", (step / 1000.0).round()) } else { format!("{step:.0}") }
}

fn shortened(name: &str) -> String {
    const MOST: usize = 14;
    if name.chars().count() <= MOST { name.to_owned() } else { name.chars().take(MOST - 1).chain(['…']).collect() }
}
