//! Readers of many requests at once: they come, wait, read, grant, leave, and remember what they heard.

use passerelle_engine::{EngineHandle, Event, EventStream, FinishReason, Request, SubmitError, Usage};

use crate::chance::Chance;
use crate::common::events;

/// The readers of one engine, and their requests.
pub(crate) struct Crowd {
    pub(crate) arrivals: Vec<Request>,
    pub(crate) live: Vec<Live>,
    pub(crate) ended: Vec<Ended>,
}

pub(crate) struct Live {
    request: Request,
    stream: EventStream,
    events: Vec<Event>,
    /// Steps until the reader leaves.
    patience: Option<usize>,
    /// Steps until one choice of several is dropped.
    choice_patience: Option<usize>,
    dropped_a_choice: bool,
}

pub(crate) struct Ended {
    pub(crate) request: Request,
    pub(crate) events: Vec<Event>,
    pub(crate) usage: Usage,
    /// Its reader took everything to the end, of every choice.
    is_whole: bool,
}

impl Crowd {
    pub(crate) fn new(arrivals: Vec<Request>) -> Self {
        Self { arrivals, live: Vec::new(), ended: Vec::new() }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.arrivals.is_empty() && self.live.is_empty()
    }

    /// Some come, if the queue has room.
    pub(crate) fn arrive(&mut self, chance: &mut Chance, handle: &EngineHandle) {
        while chance.one_in(3) {
            let Some(request) = self.arrivals.pop() else { return };
            match handle.submit(request.clone()) {
                Ok(stream) => {
                    let patience = chance.one_in(6).then(|| chance.below(20));
                    let choice_patience = chance.one_in(4).then(|| chance.below(15));
                    let (events, dropped_a_choice) = (Vec::new(), false);
                    self.live.push(Live { request, stream, events, patience, choice_patience, dropped_a_choice });
                }
                Err(SubmitError::Full { .. }) => {
                    self.arrivals.push(request);
                    return;
                }
                Err(refusal) => panic!("{refusal}"),
            }
        }
    }

    /// Everybody reads what there is; some grant, some leave.
    pub(crate) fn read(&mut self, chance: &mut Chance) {
        for mut live in std::mem::take(&mut self.live) {
            live.events.extend(events(&mut live.stream));
            if live.request.granted_tokens.is_some() && chance.one_in(3) {
                live.stream.grant(1 + chance.below(5) as u32);
            }
            live.drop_a_choice();
            let leaves = live.patience == Some(0) && !live.stream.has_ended();
            live.patience = live.patience.map(|patience| patience.saturating_sub(1));
            if leaves || live.stream.has_ended() {
                let usage = if leaves { live.stream.abort() } else { live.stream.usage() };
                let is_whole = !leaves && !live.dropped_a_choice;
                self.ended.push(Ended { request: live.request, events: live.events, usage, is_whole });
            } else {
                self.live.push(live);
            }
        }
    }

    /// What all of them have used so far.
    pub(crate) fn sum(&self, count: impl Fn(&Usage) -> u64) -> u64 {
        let live = self.live.iter().map(|live| live.stream.usage());
        live.chain(self.ended.iter().map(|ended| ended.usage)).map(|usage| count(&usage)).sum()
    }
}

impl Live {
    fn drop_a_choice(&mut self) {
        let count = self.request.num_choices.get();
        let Some(patience) = self.choice_patience.filter(|_| count > 1) else { return };
        self.choice_patience = patience.checked_sub(1);
        if patience == 0 {
            self.stream.abort_choice(count - 1);
            self.dropped_a_choice = true;
        }
    }
}

impl Ended {
    /// # Panics
    /// If the request did not get what it gets alone, or a part of that where its reader left or it failed.
    pub(crate) fn assert_is_part_of(&self, alone: &[Event]) {
        let id = self.request.id;
        let fails = failure(alone).is_some();
        assert!(!self.is_whole || failure(&self.events).is_some() == fails, "{id:?}");
        for choice in 0..self.request.num_choices.get() {
            let (got, expected) = (heard(&self.events, choice), heard(alone, choice));
            // A failure ends all choices, wherever they are.
            if self.is_whole && !fails {
                assert_eq!(got, expected, "{id:?}, choice {choice}");
            } else {
                let common = got.len().min(expected.len());
                assert_eq!(got[..common], expected[..common], "{id:?}, choice {choice}");
            }
        }
    }
}

fn failure(events: &[Event]) -> Option<&Event> {
    events.iter().find(|event| matches!(event, Event::Failed { .. }))
}

/// What concerns one choice, but for the usage, which depends on the company.
fn heard(events: &[Event], choice: u32) -> Vec<Event> {
    let own = |event: &Event| match event {
        Event::PromptLogprobs(_) => Some(event.clone()),
        Event::Token(token) => (token.choice == choice).then(|| event.clone()),
        Event::Finished { reason: FinishReason::Aborted, .. } | Event::Failed { .. } => None,
        Event::Finished { choice: other, reason, .. } => {
            let usage = Usage::default();
            (*other == choice).then_some(Event::Finished { choice, reason: *reason, usage })
        }
    };
    events.iter().filter_map(own).collect()
}
