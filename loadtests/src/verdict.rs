//! What a check says at its end: the promise, what was tried, the figures, and whether it holds.

use serde::Serialize;

use crate::figures::short;
use crate::progress::Counts;

#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub check: String,
    pub promise: String,
    pub tried: String,
    pub figures: Vec<Figure>,
    /// Where it falls short; empty when the promise holds.
    pub broken: Vec<String>,
    /// What this run cannot tell.
    pub undecided: Vec<String>,
    /// Why the figures may not be the server's.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Holds,
    FallsShort,
    /// Nothing is broken, but something could not be judged.
    CannotTell,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    pub name: String,
    /// For people.
    pub value: String,
    /// For scripts, where it is one number.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    pub number: f64,
    pub unit: &'static str,
}

impl Verdict {
    pub fn new(check: impl Into<String>, promise: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            promise: promise.into(),
            tried: String::new(),
            figures: Vec::new(),
            broken: Vec::new(),
            undecided: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Of a check that had not come to judge anything: what was sent, and what came of it.
    pub fn of_counts(check: impl Into<String>, counts: Counts) -> Self {
        let Counts { sent, in_flight, refused, failed, tokens, .. } = counts;
        let mut verdict = Self::new(check, "not judged");
        verdict.tried(format!("{sent} requests"));
        for (name, count) in [("in flight at the end", in_flight), ("refused", refused), ("failed", failed)] {
            verdict.figure(name, count.to_string());
        }
        verdict.figure("tokens received", tokens.to_string());
        verdict
    }

    /// Of a check that was stopped: what looks broken may only not have ended.
    #[must_use]
    pub fn cut_short(mut self) -> Self {
        self.undecided.append(&mut self.broken);
        self.cannot_tell("whether it holds: the check was stopped before its end");
        self
    }

    pub fn outcome(&self) -> Outcome {
        match (self.broken.is_empty(), self.undecided.is_empty()) {
            (false, _) => Outcome::FallsShort,
            (true, false) => Outcome::CannotTell,
            (true, true) => Outcome::Holds,
        }
    }

    pub fn holds(&self) -> bool {
        self.outcome() == Outcome::Holds
    }

    pub fn tried(&mut self, what: impl Into<String>) {
        self.tried = what.into();
    }

    pub fn figure(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.figures.push(Figure { name: name.into(), value: value.into(), measured: None });
    }

    /// A figure that is one number.
    pub fn number(&mut self, name: impl Into<String>, number: f64, unit: &'static str) {
        let value = format!("{} {unit}", short(number));
        self.figures.push(Figure { name: name.into(), value, measured: Some(Measured { number, unit }) });
    }

    /// A time that is not there when nothing happened.
    pub fn milliseconds(&mut self, name: impl Into<String>, value: Option<f64>) {
        match value {
            Some(number) => self.number(name, number, "ms"),
            None => self.figure(name, "none"),
        }
    }

    /// Why the figures may not be the server's.
    pub fn warn(&mut self, why: impl Into<String>) {
        self.warnings.push(why.into());
    }

    /// The promise includes that `condition` is true.
    pub fn require(&mut self, condition: bool, otherwise: impl FnOnce() -> String) {
        if !condition {
            self.broken.push(otherwise());
        }
    }

    pub fn cannot_tell(&mut self, what: impl Into<String>) {
        self.undecided.push(what.into());
    }

    pub fn render(&self) -> String {
        let mut text = format!("{}\n  promise: {}\n  tried:   {}\n", self.check, self.promise, self.tried);
        let width = self.figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
        for Figure { name, value, .. } in &self.figures {
            text.push_str(&format!("  {name:<width$}  {value}\n"));
        }
        for warning in &self.warnings {
            text.push_str(&format!("  warning: {warning}\n"));
        }
        for broken in &self.broken {
            text.push_str(&format!("  broken:  {broken}\n"));
        }
        for undecided in &self.undecided {
            text.push_str(&format!("  unknown: {undecided}\n"));
        }
        text + match self.outcome() {
            Outcome::Holds => "  holds\n",
            Outcome::FallsShort => "  falls short\n",
            Outcome::CannotTell => "  cannot tell\n",
        }
    }

    pub fn json(&self) -> serde_json::Value {
        let mut value = serde_json::json!(self);
        value["holds"] = self.holds().into();
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_falls_short_when_anything_is_broken() {
        let mut verdict = Verdict::new("example", "it is quick");
        verdict.require(true, || unreachable!("it is true"));
        assert!(verdict.holds() && verdict.render().ends_with("  holds\n"));
        verdict.require(false, || "it took 3 s".to_owned());
        assert!(!verdict.holds() && verdict.render().ends_with("broken:  it took 3 s\n  falls short\n"));
        assert_eq!(verdict.json()["holds"], false);
    }

    #[test]
    fn a_figure_that_is_a_number_can_be_read_by_scripts() {
        let mut verdict = Verdict::new("example", "it is quick");
        verdict.number("first token", 0.0123, "ms");
        verdict.figure("refusals", "none");
        verdict.warn("the generator is the bottleneck");
        let json = verdict.json();
        assert_eq!(
            json["figures"][0],
            serde_json::json!({"name": "first token", "value": "0.0123 ms", "number": 0.0123, "unit": "ms"})
        );
        assert_eq!(json["figures"][1], serde_json::json!({"name": "refusals", "value": "none"}));
        assert!(verdict.holds() && verdict.render().contains("  warning: the generator is the bottleneck\n"));
    }

    #[test]
    fn a_check_that_was_stopped_neither_holds_nor_falls_short() {
        let mut verdict = Verdict::new("example", "it is quick");
        verdict.require(false, || "3 requests were lost".to_owned());
        let cut = verdict.cut_short();
        assert_eq!(cut.outcome(), Outcome::CannotTell);
        assert!(cut.render().contains("  unknown: 3 requests were lost\n"), "{}", cut.render());
        let counts = Counts { sent: 7, refused: 2, ..Counts::default() };
        let bare = Verdict::of_counts("example", counts).cut_short().render();
        assert!(bare.contains("tried:   7 requests") && bare.ends_with("  cannot tell\n"), "{bare}");
    }

    #[test]
    fn what_a_run_cannot_tell_neither_holds_nor_hides_what_it_can() {
        let mut verdict = Verdict::new("example", "it is quick and small");
        verdict.cannot_tell("its size: give a longer --duration");
        assert_eq!((verdict.outcome(), verdict.holds()), (Outcome::CannotTell, false));
        assert!(verdict.render().ends_with("  unknown: its size: give a longer --duration\n  cannot tell\n"));
        verdict.require(false, || "it took 3 s".to_owned());
        assert_eq!(verdict.outcome(), Outcome::FallsShort);
    }
}
