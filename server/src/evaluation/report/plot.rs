//! What plots are made of: scales, round marks on them, and axes.

use std::fmt::Write;

use super::markup::escaped;

/// From values to places along one side of a plot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    values: (f64, f64),
    places: (f64, f64),
}

/// The inside of a plot, in the units of its view box.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Scale {
    /// Over all `values`, with a little room at both ends. `places` may run backwards.
    pub(super) fn over(values: impl Iterator<Item = f64>, places: (f64, f64)) -> Self {
        const ROOM: f64 = 0.06;
        let finite = values.filter(|value| value.is_finite());
        let (low, high) =
            finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let room = if high > low { (high - low) * ROOM } else { high.abs().max(1.0) * ROOM };
        Self { values: (low - room, high + room), places }
    }

    pub(super) fn with_places(self, places: (f64, f64)) -> Self {
        Self { places, ..self }
    }

    /// Values below `least` have no meaning here.
    pub(super) fn not_below(self, least: f64) -> Self {
        Self { values: (self.values.0.max(least), self.values.1), ..self }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let part = (value - self.values.0) / (self.values.1 - self.values.0);
        self.places.0 + part.clamp(0.0, 1.0) * (self.places.1 - self.places.0)
    }

    /// Round values inside, about `count` of them.
    pub(super) fn marks(&self, count: usize) -> Vec<f64> {
        let (low, high) = self.values;
        let raw = (high - low) / count.max(1) as f64;
        let decade = 10_f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|unit| unit * decade).find(|step| *step >= raw);
        let step = step.unwrap_or(raw);
        let first = (low / step).ceil() as i64;
        (first..).map(|index| index as f64 * step).take_while(|mark| *mark <= high).collect()
    }

    pub(super) fn ends(&self) -> (f64, f64) {
        self.values
    }
}

impl Frame {
    pub(super) fn across(&self) -> (f64, f64) {
        (self.left, self.right)
    }

    /// Values grow upwards.
    pub(super) fn upwards(&self) -> (f64, f64) {
        (self.bottom, self.top)
    }

    /// A line across for each mark, with its value.
    pub(super) fn value_axis(&self, scale: &Scale, shown: impl Fn(f64) -> String) -> String {
        let mut out = String::new();
        for mark in scale.marks(5) {
            let (y, left, right) = (scale.at(mark), self.left, self.right);
            let label = escaped(&shown(mark));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                left - 8.0,
                y + 4.0
            );
        }
        out
    }

    /// A line up for each mark, with its value below.
    pub(super) fn step_axis(&self, marks: &[(f64, String)]) -> String {
        let mut out = String::new();
        for (x, label) in marks {
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                self.top,
                self.bottom,
                self.bottom + 18.0,
                escaped(label)
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_inside() {
        let scale = Scale::over([0.13, 0.87].into_iter(), (0.0, 100.0));
        let marks: Vec<String> = scale.marks(5).into_iter().map(|mark| format!("{mark:.1}")).collect();
        assert_eq!(marks, ["0.2", "0.4", "0.6", "0.8"]);
    }

    #[test]
    fn a_scale_of_one_value_or_none_still_has_places() {
        for values in [vec![], vec![2.0], vec![f64::NAN]] {
            let scale = Scale::over(values.into_iter(), (0.0, 10.0));
            assert!((0.0..=10.0).contains(&scale.at(2.0)) && !scale.marks(4).is_empty());
        }
    }
}
