//! What checkpoints are ranked by. Each is a sum over items divided by another, so that items can be drawn anew.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::scored::Outcome;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Of documents: how many bits a byte of text takes.
    BitsPerByte,
    /// Of references, each after its prompt.
    ReferenceBitsPerByte,
    /// Greedy answers that are the reference.
    ExactMatch,
    /// Multiple choice, by the summed log-probability of each choice.
    Accuracy,
    /// Multiple choice, by the log-probability of each choice over its bytes.
    AccuracyPerByte,
    /// Of documents: the KL divergence from this checkpoint to the one that it was scored against, at each token.
    Divergence,
}

/// What one item adds to a metric.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Share {
    pub amount: f64,
    pub weight: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

impl Metric {
    pub const ALL: [Self; 6] = [
        Self::BitsPerByte,
        Self::ReferenceBitsPerByte,
        Self::ExactMatch,
        Self::Accuracy,
        Self::AccuracyPerByte,
        Self::Divergence,
    ];

    /// As options and files have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BitsPerByte => "bits_per_byte",
            Self::ReferenceBitsPerByte => "reference_bits_per_byte",
            Self::ExactMatch => "exact_match",
            Self::Accuracy => "accuracy",
            Self::AccuracyPerByte => "accuracy_per_byte",
            Self::Divergence => "divergence",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::BitsPerByte => "Documents: bits per byte",
            Self::ReferenceBitsPerByte => "References: bits per byte",
            Self::ExactMatch => "Greedy answers: exact match",
            Self::Accuracy => "Multiple choice: accuracy",
            Self::AccuracyPerByte => "Multiple choice: accuracy per byte",
            Self::Divergence => "Documents: KL divergence, nats a token",
        }
    }

    pub fn better(self) -> Better {
        match self {
            Self::BitsPerByte | Self::ReferenceBitsPerByte | Self::Divergence => Better::Lower,
            Self::ExactMatch | Self::Accuracy | Self::AccuracyPerByte => Better::Higher,
        }
    }

    /// A share of items, shown in percent.
    pub fn is_share(self) -> bool {
        self.better() == Better::Higher
    }

    pub fn shown(self, value: f64) -> String {
        if self.is_share() { format!("{:.1} %", value * 100.0) } else { format!("{value:.4}") }
    }

    /// The difference of two values, with its sign.
    pub fn shown_difference(self, value: f64) -> String {
        let sign = if value < 0.0 { "−" } else { "+" };
        let size = value.abs();
        if self.is_share() { format!("{sign}{:.1} pp", size * 100.0) } else { format!("{sign}{size:.4}") }
    }

    /// `None` for an item that says nothing about it.
    pub fn of(self, outcome: &Outcome) -> Option<Share> {
        let counted = |is_so: bool| Share { amount: f64::from(u8::from(is_so)), weight: 1.0 };
        match (self, outcome) {
            (Self::BitsPerByte, Outcome::Document(text))
            | (Self::ReferenceBitsPerByte, Outcome::Prompt { reference: text, .. }) => {
                text.is_scored().then(|| Share { amount: text.bits(), weight: text.bytes as f64 })
            }
            (Self::ExactMatch, outcome) => outcome.is_match().map(counted),
            (Self::Accuracy, outcome) => outcome.is_right().map(|(by_sum, _)| counted(by_sum)),
            (Self::AccuracyPerByte, outcome) => outcome.is_right().map(|(_, by_byte)| counted(by_byte)),
            (Self::Divergence, Outcome::Document(text)) => text.divergence(),
            _ => None,
        }
    }
}

/// Every metric of one checkpoint, item by item.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// In the order of [`Metric::ALL`].
    sums: [Share; Metric::ALL.len()],
}

impl Totals {
    pub fn add(&mut self, outcome: &Outcome) {
        for (sum, metric) in self.sums.iter_mut().zip(Metric::ALL) {
            let share = metric.of(outcome).unwrap_or_default();
            *sum = Share { amount: sum.amount + share.amount, weight: sum.weight + share.weight };
        }
    }

    /// `None` where no item said anything about it.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        let (sum, _) = self.sums.iter().zip(Metric::ALL).find(|(_, of)| *of == metric)?;
        (sum.weight > 0.0).then(|| sum.amount / sum.weight)
    }

    pub fn metrics(&self) -> Vec<Metric> {
        Metric::ALL.into_iter().filter(|metric| self.value(*metric).is_some()).collect()
    }
}

impl Serialize for Totals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for metric in self.metrics() {
            map.serialize_entry(metric.name(), &self.value(metric))?;
        }
        map.end()
    }
}

impl std::str::FromStr for Metric {
    type Err = String;

    fn from_str(written: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|metric| metric.name() == written);
        found.ok_or_else(|| format!("{written:?} is none of {}", names()))
    }
}
