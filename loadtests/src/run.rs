//! Carries out a plan. An open loop: requests leave at their times, whatever the answers do.

mod pacing;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

pub use pacing::Pacing;

use crate::clock::{Instant, now};
use crate::generate::{Answer, Call, generate};
use crate::http::{Client, Connect};
use crate::plan::{ClosedGroup, Conversation, Job, Plan, Script, Supply};
use crate::progress::Progress;
use crate::record::{Ending, ErrorKind, Place, Record};

/// Between the start of a run and its first request, so that everything is in place.
const LEAD: Duration = Duration::from_millis(20);
/// What a closed user waits who was refused: otherwise a server that refuses at once would be asked as fast as it can.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);
/// Beyond it requests are counted as not sent: the generator, not the server, would be measured.
pub const DEFAULT_MAX_IN_FLIGHT: usize = 16_384;

#[derive(Debug, Clone)]
pub struct RunOptions {
    pub pacing: Pacing,
    pub max_in_flight: usize,
    pub progress: Arc<Progress>,
    /// Ends the run that goes on, or else the next one: what has ended is reported, what has not is cut off and counted.
    pub stop: Arc<Notify>,
}

#[derive(Debug)]
pub struct Run {
    /// In the order in which they ended.
    pub records: Vec<Record>,
    /// From the first intended start to the last end.
    pub wall: Duration,
    /// Before its end.
    pub was_stopped: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            pacing: Pacing::Thread,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            progress: Arc::default(),
            stop: Arc::default(),
        }
    }
}

/// Sends all that `plan` holds to `client`'s server and waits for every answer, or until it is told to stop.
pub async fn run<C: Connect>(client: &Client<C>, plan: &Plan, options: &RunOptions) -> Run {
    let sender = Sender {
        client: client.clone(),
        start: now() + LEAD,
        duration: plan.duration,
        progress: Arc::clone(&options.progress),
        records: Arc::default(),
    };
    let mut users = JoinSet::new();
    let was_stopped = tokio::select! {
        () = send_all(&sender, &mut users, plan, options) => false,
        () = options.stop.notified() => true,
    };
    users.shutdown().await;
    let records = std::mem::take(&mut *sender.records.lock().unwrap_or_else(PoisonError::into_inner));
    let wall = records.iter().map(|record| record.end).max().unwrap_or_default();
    Run { records, wall, was_stopped }
}

async fn send_all<C: Connect>(sender: &Sender<C>, users: &mut JoinSet<()>, plan: &Plan, options: &RunOptions) {
    for group in &plan.closed {
        spawn_closed(users, sender, group);
    }
    let offsets = plan.open.iter().map(|job| job.at).collect();
    let mut ticks = options.pacing.ticks(sender.start, offsets);
    while let Some(index) = ticks.recv().await {
        let job = &plan.open[index];
        if options.progress.counts().in_flight as usize >= options.max_in_flight {
            sender.note_not_sent(job);
        } else {
            let (sender, job) = (sender.clone(), job.clone());
            users.spawn(async move {
                sender.carry_out(&job.script, job.place(job.at)).await;
            });
        }
        while let Some(ended) = users.try_join_next() {
            ended.expect("a user's task does not panic and is not cancelled");
        }
    }
    while let Some(ended) = users.join_next().await {
        ended.expect("a user's task does not panic and is not cancelled");
    }
}

fn spawn_closed<C: Connect>(users: &mut JoinSet<()>, sender: &Sender<C>, group: &ClosedGroup) {
    let questions = Arc::new(Questions { jobs: group.jobs.clone(), supply: group.supply, asked: AtomicUsize::new(0) });
    for _ in 0..group.concurrency {
        let (sender, questions) = (sender.clone(), Arc::clone(&questions));
        users.spawn(async move {
            tokio::time::sleep_until(sender.start).await;
            while let Some((job, lap)) = questions.next() {
                let intended = now().saturating_duration_since(sender.start);
                if intended >= sender.duration {
                    break;
                }
                let ending = sender.carry_out(&job.script, Place { lap, ..job.place(intended) }).await;
                if matches!(ending, Ending::Refused { .. } | Ending::Failed(_)) {
                    tokio::time::sleep(AFTER_REFUSAL).await;
                }
            }
        });
    }
}

/// What closed users ask, one after the other.
struct Questions {
    jobs: Vec<Job>,
    supply: Supply,
    asked: AtomicUsize,
}

impl Questions {
    /// The next one, and how often it was asked before.
    fn next(&self) -> Option<(&Job, usize)> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let lap = number.checked_div(self.jobs.len())?;
        let is_left = lap == 0 || self.supply == Supply::Again;
        is_left.then(|| (&self.jobs[number % self.jobs.len()], lap))
    }
}

struct Sender<C: Connect> {
    client: Client<C>,
    start: Instant,
    /// Nothing is sent after it.
    duration: Duration,
    progress: Arc<Progress>,
    records: Arc<Mutex<Vec<Record>>>,
}

/// One request on its way. Who ends it by dropping it, as a stopped run does, leaves a record of it too.
struct InFlight<'a, C: Connect> {
    sender: &'a Sender<C>,
    place: Place,
    sent: Instant,
    is_over: bool,
}

impl<C: Connect> Clone for Sender<C> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            start: self.start,
            duration: self.duration,
            progress: Arc::clone(&self.progress),
            records: Arc::clone(&self.records),
        }
    }
}

impl<C: Connect> Sender<C> {
    /// How the last request ended.
    async fn carry_out(&self, script: &Script, place: Place) -> Ending {
        match script {
            Script::Single(call) => {
                let record = self.ask(call, place).await;
                let ending = record.ending.clone();
                self.keep(record);
                ending
            }
            Script::Conversation(conversation) => self.converse(conversation, place).await,
        }
    }

    /// Turn after turn; a turn that fails ends the conversation, and so does the scenario's end.
    async fn converse(&self, conversation: &Conversation, mut place: Place) -> Ending {
        let mut messages = Vec::new();
        let mut ending = Ending::Finished;
        for (turn, (text, max_tokens)) in conversation.turns.iter().enumerate() {
            if turn > 0 {
                if place.intended >= self.duration {
                    break;
                }
                tokio::time::sleep_until(self.start + place.intended).await;
            }
            messages.push(serde_json::json!({"role": "user", "content": text}));
            let mut call = conversation.call.clone();
            call.body = conversation.template.chat(&messages, *max_tokens);
            let record = self.ask(&call, Place { turn, ..place }).await;
            messages.push(serde_json::json!({"role": "assistant", "content": record.text}));
            place.intended = record.end + conversation.think;
            ending = record.ending.clone();
            self.keep(record);
            if ending != Ending::Finished {
                break;
            }
        }
        ending
    }

    async fn ask(&self, call: &Call, place: Place) -> Record {
        self.progress.count_sent();
        let mut flight = InFlight { sender: self, place, sent: now(), is_over: false };
        let record = Record::new(place, self.start, generate(&self.client, call).await);
        flight.is_over = true;
        self.progress.count_ended(&record);
        record
    }

    fn note_not_sent(&self, job: &Job) {
        let answer = Answer::none(now(), Ending::Failed(ErrorKind::NotSent));
        self.keep(Record::new(job.place(job.at), self.start, answer));
    }

    fn keep(&self, record: Record) {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

impl<C: Connect> Drop for InFlight<'_, C> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let record = Record::new(self.place, self.sender.start, Answer::none(self.sent, Ending::Interrupted));
        self.sender.progress.count_ended(&record);
        self.sender.keep(record);
    }
}
