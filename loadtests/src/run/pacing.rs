//! Keeps the times of a schedule.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::{Instant, now};

/// Arrivals that the sender has not yet taken; the schedule waits beyond it, and lateness shows it.
const TICK_QUEUE: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pacing {
    /// A thread of its own: the runtime's timer counts in milliseconds, which is 2 % of a first token after 50 ms.
    Thread,
    /// The runtime's timer, which tests can pause.
    Runtime,
}

impl Pacing {
    /// Yields 0, 1, 2, ... at `start` plus each of `offsets`, which are in order.
    pub(super) fn ticks(self, start: Instant, offsets: Vec<Duration>) -> mpsc::Receiver<usize> {
        let (sender, receiver) = mpsc::channel(TICK_QUEUE);
        match self {
            Self::Thread => {
                std::thread::spawn(move || {
                    for (index, offset) in offsets.into_iter().enumerate() {
                        wait_until(start + offset);
                        if sender.blocking_send(index).is_err() {
                            return;
                        }
                    }
                });
            }
            Self::Runtime => {
                tokio::spawn(async move {
                    for (index, offset) in offsets.into_iter().enumerate() {
                        tokio::time::sleep_until(start + offset).await;
                        if sender.send(index).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
        receiver
    }
}

fn wait_until(moment: Instant) {
    loop {
        let left = moment.saturating_duration_since(now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}
