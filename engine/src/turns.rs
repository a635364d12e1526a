//! Several engines of one process share one compute pool: they take turns, one step each, first come first served.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// A fair turnstile. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StepTurns {
    gate: Arc<Gate>,
}

/// The right to compute. Passes on when dropped.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn<'a> {
    gate: &'a Gate,
}

#[derive(Debug, Default)]
struct Gate {
    line: Mutex<Line>,
    moved: Condvar,
}

/// Tickets are numbered; the one that equals `serving` has the turn.
#[derive(Debug, Default)]
struct Line {
    next_ticket: u64,
    serving: u64,
}

impl StepTurns {
    /// A turnstile of its own, for engines that share nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for everyone who asked before. Never asked twice by one thread without giving back.
    pub fn take(&self) -> Turn<'_> {
        let mut line = self.gate.lock();
        let ticket = line.next_ticket;
        line.next_ticket += 1;
        while line.serving != ticket {
            line = self.gate.moved.wait(line).expect("no code panics while it holds the line");
        }
        Turn { gate: &self.gate }
    }

    /// `None` where somebody else has it or waits for it.
    pub fn take_if_free(&self) -> Option<Turn<'_>> {
        let mut line = self.gate.lock();
        let is_free = line.serving == line.next_ticket;
        is_free.then(|| {
            line.next_ticket += 1;
            Turn { gate: &self.gate }
        })
    }
}

#[cfg(test)]
impl StepTurns {
    /// Returns once `tickets` turns were asked for, since the start.
    pub(crate) fn wait_until_asked(&self, tickets: u64) {
        while self.num_asked() < tickets {
            std::thread::yield_now();
        }
    }

    pub(crate) fn num_asked(&self) -> u64 {
        self.gate.lock().next_ticket
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().expect("no code panics while it holds the line")
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.gate.lock().serving += 1;
        self.gate.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_served_in_the_order_they_were_asked_for() {
        let turns = StepTurns::new();
        let served = Arc::new(Mutex::new(Vec::new()));
        let first = turns.take();
        let threads: Vec<_> = (0..4)
            .map(|name| {
                let (their_turns, their_served) = (turns.clone(), Arc::clone(&served));
                let thread = std::thread::spawn(move || {
                    let _turn = their_turns.take();
                    their_served.lock().unwrap().push(name);
                });
                turns.wait_until_asked(name + 2);
                thread
            })
            .collect();
        assert!(served.lock().unwrap().is_empty());
        drop(first);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*served.lock().unwrap(), [0, 1, 2, 3]);
    }
}
