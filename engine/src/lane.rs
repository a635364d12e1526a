//! What the lanes beside the engines have in common: a bounded door to a thread, and an inbox there that takes shares in
//! turn, in the order of [`crate::policy`]. A request costs its tokens, and has one answer.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::admission::{Admission, AdmissionBounds, Occupancy, Phase, Ticket};
use crate::cost::CostNs;
use crate::error::SubmitError;
use crate::event::RequestError;
use crate::policy::{Taken, WaitingQueue};
use crate::reply::{Reply, ReplySender, reply_channel};
use crate::request::{Class, ShareKey, ShareWeight};
use crate::sequence::{SequenceId, Share};

/// New requests taken in at once, so that a flood of them cannot hold up those that were there.
const MAX_COMMANDS_AT_ONCE: usize = 1024;

/// What a lane can be asked.
pub(crate) trait LaneRequest {
    fn share_key(&self) -> ShareKey;
    fn num_tokens(&self) -> usize;
}

/// A request, its place in the bounds and its way out.
#[derive(Debug)]
pub(crate) struct Job<R, A> {
    pub(crate) request: R,
    pub(crate) reply: ReplySender<A>,
    ticket: Ticket,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneBounds {
    pub(crate) max_waiting: usize,
    pub(crate) max_waiting_tokens: usize,
    /// Of one batch.
    pub(crate) max_running: usize,
    /// Tokens that a share may be ahead of the others.
    pub(crate) quantum: usize,
}

/// How much one batch takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchBudget {
    pub(crate) tokens: usize,
    pub(crate) requests: usize,
}

/// Whoever asks has this end.
#[derive(Debug)]
pub(crate) struct LaneDoor<R, A> {
    commands: SyncSender<Command<R, A>>,
    admission: Arc<Admission>,
}

/// The lane's thread has this one.
#[derive(Debug)]
pub(crate) struct Inbox<R, A> {
    commands: Receiver<Command<R, A>>,
    admission: Arc<Admission>,
    waiting: WaitingQueue<Job<R, A>>,
    next_id: u64,
}

#[derive(Debug)]
enum Command<R, A> {
    Add(Box<Job<R, A>>),
    /// The phase has changed: look at it.
    Wake,
}

pub(crate) fn lane<R: LaneRequest, A>(bounds: LaneBounds) -> (LaneDoor<R, A>, Inbox<R, A>) {
    // A place for every request that may wait, and one for a wake-up.
    let (sender, commands) = sync_channel(bounds.max_waiting + 1);
    let admission = Arc::new(Admission::new(AdmissionBounds {
        max_waiting_requests: bounds.max_waiting,
        max_waiting_tokens: bounds.max_waiting_tokens,
        max_running_requests: bounds.max_running,
    }));
    // All requests are of one class, so nobody's patience ends.
    let waiting = WaitingQueue::new(bounds.quantum as CostNs, Duration::MAX);
    let inbox = Inbox { commands, admission: Arc::clone(&admission), waiting, next_id: 0 };
    (LaneDoor { commands: sender, admission }, inbox)
}

impl<R: LaneRequest, A> LaneDoor<R, A> {
    /// Never blocks. Errors at once when the queue is full.
    pub(crate) fn submit(&self, request: R) -> Result<Reply<A>, SubmitError> {
        let ticket = self.admission.enter(request.num_tokens())?;
        let (reply, answer) = reply_channel();
        let job = Box::new(Job { request, reply, ticket });
        self.commands.try_send(Command::Add(job)).map_err(|_| self.admission.refusal())?;
        Ok(answer)
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        self.admission.occupancy()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.admission.is_dead()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.admission.is_idle()
    }

    /// Admits nothing more and wakes the thread.
    pub(crate) fn shut_down(&self) {
        self.admission.advance(Phase::Stopping);
        // A full queue means that the lane is awake anyway, and a closed one that it is gone.
        let _ = self.commands.try_send(Command::Wake);
    }
}

impl<R: LaneRequest, A> Inbox<R, A> {
    /// Sleeps while nothing is there. False once the lane is to end.
    pub(crate) fn wait(&mut self) -> bool {
        if self.is_closing() {
            return false;
        }
        if self.waiting.is_empty() {
            match self.commands.recv() {
                Ok(command) => self.accept(command),
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether what was admitted is to be failed.
    pub(crate) fn is_closing(&self) -> bool {
        self.admission.phase() >= Phase::Stopping
    }

    /// Takes in what came, and out what nobody waits for any more. False if nothing is left.
    pub(crate) fn refresh(&mut self) -> bool {
        self.take_commands();
        self.extract(|job| job.reply.is_cancelled());
        !self.waiting.is_empty()
    }

    /// The next requests, as many as the budget holds, and at least one: one longer than the budget runs alone.
    pub(crate) fn take_batch(&mut self, budget: BatchBudget) -> Vec<Job<R, A>> {
        let (mut batch, mut tokens) = (Vec::new(), 0);
        while batch.len() < budget.requests
            && let Some(next) = self.waiting.peek(Duration::ZERO, |_| 0)
        {
            let length = next.request.num_tokens();
            if !batch.is_empty() && tokens + length > budget.tokens {
                break;
            }
            let Some(Taken { item: job, .. }) = self.waiting.pop(Duration::ZERO) else { break };
            self.waiting.charge(job.share(), ShareWeight::default(), length as CostNs);
            tokens += length;
            job.ticket.leave_queue();
            batch.push(job);
        }
        // Only now: a share whose last request left would start again without what it was charged.
        batch.iter().for_each(|job| self.waiting.leave(job.share()));
        batch
    }

    /// Nothing will ever run again.
    pub(crate) fn give_up(&self) {
        self.admission.advance(Phase::Dead);
    }

    pub(crate) fn num_waiting(&self) -> usize {
        self.admission.occupancy().waiting_requests
    }

    /// Fails whatever is left, with `hopeless` if the lane gave up.
    pub(crate) fn fail_all(&mut self, hopeless: &str) {
        let why = match self.admission.phase() {
            Phase::Dead => RequestError::Step(hopeless.to_owned()),
            _ => RequestError::ShuttingDown,
        };
        while let Ok(command) = self.commands.try_recv() {
            self.accept(command);
        }
        self.extract(|_| true).into_iter().for_each(|job| job.end(Err(why.clone())));
    }

    fn take_commands(&mut self) {
        for _ in 0..MAX_COMMANDS_AT_ONCE {
            match self.commands.try_recv() {
                Ok(command) => self.accept(command),
                Err(_) => return,
            }
        }
    }

    fn accept(&mut self, command: Command<R, A>) {
        let Command::Add(job) = command else { return };
        let (share, class) = (job.share(), Class::default());
        let id = SequenceId { class, arrival: self.next_id, choice: 0 };
        self.next_id += 1;
        self.waiting.enter(share);
        self.waiting.push(share, id, *job);
    }

    fn extract(&mut self, unwanted: impl Fn(&Job<R, A>) -> bool) -> Vec<Job<R, A>> {
        let taken = self.waiting.extract(unwanted);
        taken.iter().for_each(|job| self.waiting.leave(job.share()));
        taken
    }
}

impl<R, A> Drop for Inbox<R, A> {
    /// Runs before the replies close, so that whoever finds one lost also finds the lane dead.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.admission.advance(Phase::Dead);
        }
    }
}

impl<R: LaneRequest, A> Job<R, A> {
    /// The place is given back before the answer: whoever has an answer finds room for the next request.
    pub(crate) fn end(self, answer: Result<A, RequestError>) {
        let Self { ticket, reply, .. } = self;
        drop(ticket);
        reply.send(answer);
    }

    fn share(&self) -> Share {
        Share { class: Class::default(), key: self.request.share_key() }
    }
}
