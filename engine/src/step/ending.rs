//! How sequences end. Whoever sees a request end finds statistics that include its end, and room for what it asks next: a
//! request's ticket waits until they are published, and its last event until the ticket was given back.

use std::time::Duration;

use super::StepLoop;
use crate::batch::ScheduledBatch;
use crate::event::{FinishReason, RequestError};
use crate::fault::{Fault, FaultCounts};
use crate::kv_cache_manager::Prefixes;
use crate::sequence::{Sequence, SequenceId};

#[derive(Debug)]
pub(super) enum Ending {
    Finished(FinishReason),
    Failed(RequestError),
}

impl StepLoop {
    pub(super) fn fail(&mut self, id: SequenceId, error: RequestError) {
        // What others found in the cache is no worse for a request that its own fields end.
        let is_of_model = error.fault().is_some_and(Fault::is_of_model);
        let prefixes = if is_of_model { Prefixes::Forget } else { Prefixes::Keep };
        let Some(sequence) = self.scheduler.remove(id, prefixes) else { return };
        if error.fault().is_some() {
            tracing::error!(request = sequence.request_id.0, %error, "a request failed");
            self.faulted_sequences += usize::from(is_of_model);
        }
        self.conclude(sequence, Ending::Failed(error));
    }

    pub(super) fn conclude(&mut self, sequence: Sequence, ending: Ending) {
        // One that never ran still stands in the queue.
        sequence.ticket.leave_queue();
        if let Ending::Failed(error) = &ending {
            // Another choice of the request may have failed it already.
            let is_first = sequence.events.mark_failed();
            let failed: FaultCounts = error.fault().filter(|_| is_first).into_iter().collect();
            self.stats.failures_total += failed.total();
            self.failures += failed;
        }
        self.ended.push((sequence, ending));
    }

    /// A request fails as a whole: its other choices leave with the one that failed, wherever they are. One that is parked would
    /// be looked at again only when somebody rings. Only after the step's time was shared out, of which they have their part.
    pub(super) fn end_choices_of_failed(&mut self) {
        if !self.ended.iter().any(|(_, ending)| matches!(ending, Ending::Failed(_))) {
            return;
        }
        for sequence in self.scheduler.extract(|sequence| sequence.events.has_failed()) {
            self.conclude(sequence, Ending::Finished(FinishReason::Aborted));
        }
    }

    /// The last events. Only after [`StepLoop::publish`].
    pub(super) fn release_ended(&mut self) {
        // What is left of the sequences, their places among it, is given back here.
        let last_words: Vec<_> = self.ended.drain(..).map(|(sequence, ending)| (sequence.events, ending)).collect();
        for (events, ending) in last_words {
            match ending {
                Ending::Finished(reason) => events.finish(reason),
                Ending::Failed(error) => events.fail(error),
            }
        }
    }

    pub(super) fn fail_all(&mut self, error: &RequestError) {
        let before = self.stats.clone();
        while let Ok(command) = self.commands.try_recv() {
            self.accept(command);
        }
        for sequence in self.scheduler.extract(|_| true) {
            self.conclude(sequence, Ending::Failed(error.clone()));
        }
        self.publish();
        // The last word: nothing runs or waits any more.
        let report = self.report(&ScheduledBatch::default(), &before, Duration::ZERO);
        self.observer.0.step(&report);
        self.release_ended();
        self.observer.0.concluded();
    }
}
