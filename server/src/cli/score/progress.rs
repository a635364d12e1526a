//! How far it has come, on standard error: a bar on a terminal, elsewhere a line at the beginning, at each tenth and at
//! the end.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Which checkpoint of how many, from 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    place: usize,
    count: usize,
}

/// One checkpoint's.
#[derive(Debug)]
pub(super) struct Running {
    what: String,
    bar: ProgressBar,
    is_terminal: bool,
}

impl Progress {
    pub(super) fn new(place: usize, count: usize) -> Self {
        Self { place, count }
    }

    pub(super) fn start(self, name: &str, done: usize, items: usize) -> Running {
        let what = format!("[{}/{}] {name}", self.place, self.count);
        let is_terminal = io::stderr().is_terminal();
        if !is_terminal {
            tell!("{what}: {done} of {items} items are done");
        }
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos} of {len} items, {eta} left")
            .expect("the template is a constant that a test draws");
        let bar = ProgressBar::with_draw_target(Some(items as u64), target).with_style(style);
        bar.set_message(what.clone());
        bar.set_position(done as u64);
        Running { what, bar, is_terminal }
    }
}

impl Running {
    pub(super) fn one_more(&self) {
        self.bar.inc(1);
        let (done, items) = (self.bar.position(), self.bar.length().unwrap_or(0));
        if !self.is_terminal && ends_a_tenth(done, items) {
            tell!("{}: {done} of {items} items", self.what);
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
        let line = format!("{}: {} items", self.what, self.bar.position());
        if self.is_terminal { self.bar.println(line) } else { tell!("{line}") }
    }
}

/// The last one has a line of its own.
fn ends_a_tenth(done: u64, items: u64) -> bool {
    done < items && done * 10 / items > done.saturating_sub(1) * 10 / items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gets_a_line_for_each_tenth() {
        let lines = |items| (1..=items).filter(|done| ends_a_tenth(*done, items)).collect::<Vec<_>>();
        assert_eq!(lines(1000), [100, 200, 300, 400, 500, 600, 700, 800, 900]);
        assert_eq!(lines(3), [1, 2]);
        assert_eq!(lines(1), [0; 0]);
    }

    #[test]
    fn the_bar_can_be_drawn() {
        Progress::new(1, 2).start("demo", 0, 3).finish();
    }
}
