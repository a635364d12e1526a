//! Keeps a partition served by a worker of this machine: starts one, starts another when it ends or says that it leaves, and
//! never gives up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::clock::Clock;
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::backoff::{Backoff, BackoffBounds};
use super::slot::{Standing, WorkerSlot};

/// How a process ended, in words.
pub type Ended = String;

/// A process whose stream has ended dies so soon, or hangs.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// A worker that has given up what still ran exits so soon.
const TO_EXIT: Duration = Duration::from_secs(5);

/// Who ends a server ends its workers in the same breath, in whatever order: a service manager signals all of a group. So
/// long after one leaves it may turn out that no other is wanted.
const SAME_BREATH: Duration = Duration::from_millis(500);

/// How a partition is kept served.
#[derive(Debug, Clone)]
pub struct Keeping {
    pub restarts: BackoffBounds,
    /// For a worker that leaves, to finish what it runs.
    pub patience: Duration,
    /// True once the server admits nothing more.
    pub is_stopping: watch::Receiver<bool>,
}

/// Runs until it is dropped, or the server stops and the worker is gone. `start`: a process that dials the slot; what it
/// returns is ready when the process has ended, and ends the process when it is dropped.
pub async fn supervise<P: Future<Output = Ended> + Send + 'static>(
    slot: Arc<WorkerSlot>,
    Keeping { restarts, patience, mut is_stopping }: Keeping,
    clock: Arc<dyn Clock>,
    mut start: impl FnMut() -> io::Result<P>,
) {
    let partition = slot.partition();
    let mut backoff = Backoff::new(restarts);
    let mut standing = slot.standing();
    loop {
        let began = clock.now();
        let ended = match start() {
            Ok(process) => match until_end_or_leave(Box::pin(process), &mut standing).await {
                Outcome::Ended(how) => how,
                // One that hangs is ended by the drop of what is not awaited any more.
                Outcome::Lost(process) => {
                    timeout(LAST_BREATH, process).await.unwrap_or_else(|_| "it was ended, since it hung".to_owned())
                }
                Outcome::Leaves(process) => {
                    tokio::spawn(end_of_leaver(partition.to_owned(), timeout(patience + TO_EXIT, process)));
                    if stops_within(SAME_BREATH, &mut is_stopping).await {
                        return;
                    }
                    continue;
                }
            },
            Err(error) => format!("it could not be started: {error}"),
        };
        slot.note_end();
        if *is_stopping.borrow() {
            tracing::info!(partition, ended, "a worker ended, and so does the server");
            return;
        }
        let pause = backoff.after(clock.now().saturating_sub(began));
        // Who waits for the first worker decides what its end means.
        if standing.borrow().arrivals == 0 {
            tracing::error!(partition, ended, "a worker ended before it had loaded its models");
        } else {
            tracing::error!(partition, ended, again_in = ?pause, "a worker ended; another is started");
        }
        if stops_within(pause, &mut is_stopping).await {
            return;
        }
    }
}

async fn stops_within(time: Duration, is_stopping: &mut watch::Receiver<bool>) -> bool {
    matches!(timeout(time, is_stopping.wait_for(|stops| *stops)).await, Ok(Ok(_)))
}

async fn end_of_leaver(partition: String, process: impl Future<Output = Result<Ended, Elapsed>>) {
    match process.await {
        Ok(ended) => tracing::info!(partition, ended, "a worker that left has ended"),
        Err(_) => tracing::warn!(partition, "a worker that left hung, and was ended"),
    }
}

enum Outcome<P> {
    Ended(Ended),
    Lost(P),
    Leaves(P),
}

async fn until_end_or_leave<P: Future<Output = Ended> + Unpin>(
    mut process: P,
    standing: &mut watch::Receiver<Standing>,
) -> Outcome<P> {
    let Standing { leavings, losses, .. } = *standing.borrow_and_update();
    let mut leaver = standing.clone();
    // One that says that it leaves may have ended by the time that it is heard.
    tokio::select! {
        biased;
        // The slot lives as long as whoever supervises it.
        _ = leaver.wait_for(|standing| standing.leavings > leavings) => Outcome::Leaves(process),
        how = &mut process => Outcome::Ended(how),
        _ = standing.wait_for(|standing| standing.losses > losses) => Outcome::Lost(process),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use passerelle_engine::clock::ManualClock;
    use tokio::sync::mpsc;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::workers::WorkersFrom;

    fn keeping(stop: &watch::Sender<bool>) -> Keeping {
        let restarts = BackoffBounds { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
        Keeping { restarts, patience: Duration::ZERO, is_stopping: stop.subscribe() }
    }

    /// On a clock that runs by itself when everybody waits.
    #[tokio::test(start_paused = true)]
    async fn a_worker_that_ends_is_started_again_and_each_time_later() {
        let begun = Instant::now();
        let (started, mut starts) = mpsc::channel(8);
        let start = move || {
            let started = started.clone();
            Ok(async move {
                // Whoever looks on may have seen enough.
                let _ = started.send(begun.elapsed()).await;
                "exit status: 1".to_owned()
            })
        };
        let slot = Arc::new(WorkerSlot::new("a", WorkersFrom::Here, Vec::new()));
        let stop = watch::Sender::new(false);
        let supervised = tokio::spawn(supervise(slot, keeping(&stop), Arc::new(ManualClock::default()), start));
        let mut at = Vec::new();
        while at.len() < 4 {
            at.push(starts.recv().await.expect("it is never given up").as_secs());
        }
        assert_eq!(at, [0, 1, 3, 7]);
        supervised.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_be_started_is_tried_again() {
        let tries = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&tries);
        let start = move || -> io::Result<std::future::Pending<Ended>> {
            *counted.lock().expect("nobody panics") += 1;
            Err(io::Error::other("no such program"))
        };
        let slot = Arc::new(WorkerSlot::new("a", WorkersFrom::Here, Vec::new()));
        let stop = watch::Sender::new(false);
        let supervised = supervise(slot, keeping(&stop), Arc::new(ManualClock::default()), start);
        // After 0, 1, 3, 7, 15 and 31 seconds.
        timeout(Duration::from_secs(40), supervised).await.expect_err("it never ends");
        assert_eq!(*tries.lock().expect("nobody panics"), 6);
    }

    /// `stops_at`: seconds from the beginning, of a worker that ends after two.
    async fn starts_of_a_server_that_stops(stops_at: u64) -> usize {
        let starts = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&starts);
        let start = move || {
            *counted.lock().expect("nobody panics") += 1;
            Ok(async {
                sleep(Duration::from_secs(2)).await;
                "exit status: 0".to_owned()
            })
        };
        let slot = Arc::new(WorkerSlot::new("a", WorkersFrom::Here, Vec::new()));
        let stop = watch::Sender::new(false);
        let supervised = supervise(slot, keeping(&stop), Arc::new(ManualClock::default()), start);
        let stopping = async {
            sleep(Duration::from_secs(stops_at)).await;
            stop.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = supervised => {}
            () = stopping => {}
        }
        *starts.lock().expect("nobody panics")
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stops_starts_no_worker_in_the_place_of_one_that_ends() {
        assert_eq!(starts_of_a_server_that_stops(1).await, 1);
        // After a pause of one second there was another one, which ends after the fifth.
        assert_eq!(starts_of_a_server_that_stops(4).await, 2);
    }
}
