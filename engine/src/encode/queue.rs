//! Texts that wait for a batch, in the order of [`crate::policy`]: shares in turn. A text costs its tokens.

use std::time::Duration;

use crate::admission::Ticket;
use crate::cost::CostNs;
use crate::encode::EncodeRequest;
use crate::encode::reply::EncodeSender;
use crate::policy::{Taken, WaitingQueue};
use crate::request::{Class, ShareWeight};
use crate::sequence::{SequenceId, Share};

/// A text, its place in the bounds and its way out.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) request: EncodeRequest,
    pub(super) ticket: Ticket,
    pub(super) reply: EncodeSender,
}

#[derive(Debug)]
pub(super) struct TextQueue {
    waiting: WaitingQueue<Text>,
    next_id: u64,
}

/// How much one batch takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchBudget {
    pub(super) tokens: usize,
    pub(super) texts: usize,
}

impl Text {
    fn share(&self) -> Share {
        Share { class: Class::default(), key: self.request.share_key }
    }
}

impl TextQueue {
    /// A share may be a batch ahead of the others.
    pub(super) fn new(max_batch_tokens: usize) -> Self {
        // All texts are of one class, so nobody's patience ends.
        Self { waiting: WaitingQueue::new(max_batch_tokens as CostNs, Duration::MAX), next_id: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, text: Text) {
        let (share, class) = (text.share(), Class::default());
        let id = SequenceId { class, arrival: self.next_id, choice: 0 };
        self.next_id += 1;
        self.waiting.enter(share);
        self.waiting.push(share, id, text);
    }

    /// Takes what nobody waits for any more.
    pub(super) fn drain_cancelled(&mut self) {
        self.extract(|text| text.reply.is_cancelled());
    }

    pub(super) fn drain_all(&mut self) -> Vec<Text> {
        self.extract(|_| true)
    }

    /// The next texts, as many as the budget holds, and at least one: a text longer than the budget runs alone.
    pub(super) fn take_batch(&mut self, budget: BatchBudget) -> Vec<Text> {
        let (mut batch, mut tokens) = (Vec::new(), 0);
        while batch.len() < budget.texts
            && let Some(next) = self.waiting.peek(Duration::ZERO, |_| 0)
        {
            let length = next.request.tokens.len();
            if !batch.is_empty() && tokens + length > budget.tokens {
                break;
            }
            let Some(Taken { item: text, .. }) = self.waiting.pop(Duration::ZERO) else { break };
            self.waiting.charge(text.share(), ShareWeight::default(), length as CostNs);
            tokens += length;
            text.ticket.leave_queue();
            batch.push(text);
        }
        // Only now: a share whose last text left would start again without what it was charged.
        batch.iter().for_each(|text| self.waiting.leave(text.share()));
        batch
    }

    fn extract(&mut self, unwanted: impl Fn(&Text) -> bool) -> Vec<Text> {
        let taken = self.waiting.extract(unwanted);
        taken.iter().for_each(|text| self.waiting.leave(text.share()));
        taken
    }
}
