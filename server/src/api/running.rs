//! A prompt that an engine runs: the choices of its answer, written side by side.

use std::collections::VecDeque;

use passerelle_engine::{Event, FinishReason, SharedModel, TokenEvent, Usage};

use super::choice::Writer;
use super::delta::{AnswerEnd, ChoiceDelta, Delta};
use super::errors::{ApiError, ErrorKind};
use super::meter::PromptMeter;
use super::ranking::Ranking;
use super::shadow::AnswerRecorder;
use crate::gateway::Generation;
use crate::gateway::journal::JournalUnavailable;
use crate::units::saturating_u32;

/// What is made of a prompt's events.
#[derive(Debug)]
pub(crate) struct Writers {
    /// One for each choice that is generated.
    pub(crate) of_choices: Vec<Writer>,
    /// Which of them are shown; `None`: all, as they come.
    pub(crate) ranking: Option<Ranking>,
    pub(crate) settle_at: SettleAt,
    /// Sees what is generated, and its end.
    pub(crate) recorder: Option<AnswerRecorder>,
}

/// When a prompt is settled whose answers come to their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SettleAt {
    /// Before the end of the last answer is written.
    LastToken,
    /// When whoever runs more for it says so.
    Told,
}

/// Dropping it aborts the request and settles what it used.
#[derive(Debug)]
pub(crate) struct RunningPrompt {
    /// `None` once every choice is over, so that it is settled before the last one's end is written.
    generation: Option<Generation>,
    writers: Vec<Writer>,
    num_open: usize,
    ranking: Option<Ranking>,
    meter: PromptMeter,
    pending: VecDeque<ChoiceDelta>,
    settle_at: SettleAt,
    recorder: Option<AnswerRecorder>,
    /// Once over.
    settled: Option<Usage>,
    /// Nothing of it has been given to anybody.
    is_unread: bool,
}

impl RunningPrompt {
    pub(crate) fn new(generation: Generation, writers: Writers, meter: PromptMeter) -> Self {
        let Writers { of_choices: mut writers, ranking, settle_at, recorder } = writers;
        let at_start = writers.iter_mut().map(Writer::prompt_at_start).enumerate();
        let at_start: Vec<_> =
            at_start.filter_map(|(index, delta)| Some(ChoiceDelta { index, delta: delta? })).collect();
        let (num_open, pending) = (writers.len(), VecDeque::new());
        let generation = Some(generation);
        let mut prompt = Self {
            generation,
            writers,
            num_open,
            ranking,
            meter,
            pending,
            settle_at,
            recorder,
            settled: None,
            is_unread: true,
        };
        prompt.show(at_start);
        prompt
    }

    /// The next piece of any choice; `None` after all have `Finished`. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<ChoiceDelta>, ApiError> {
        while self.pending.is_empty() {
            if self.num_open == 0 {
                return Ok(None);
            }
            let Some(generation) = &mut self.generation else { return Ok(None) };
            let event = generation.next().await;
            self.take(event)?;
        }
        let piece = self.pending.pop_front();
        self.is_unread = false;
        if let Some(ChoiceDelta { index, delta: Delta::Text(part) }) = &piece
            && !part.token_ids.is_empty()
        {
            self.meter.token(*index);
        }
        Ok(piece)
    }

    /// What was read so far, then what was settled. Never falls while the prompt runs.
    pub(crate) fn usage(&self) -> Usage {
        match (&self.settled, &self.generation) {
            (Some(settled), _) => *settled,
            (None, running) => Usage {
                prompt_tokens: self.writers.first().map_or(0, |writer| saturating_u32(writer.num_prompt_tokens())),
                generated_tokens: self.writers.iter().map(Writer::tokens_seen).sum(),
                ..running.as_ref().map(Generation::used).unwrap_or_default()
            },
        }
    }

    fn take(&mut self, event: Option<Event>) -> Result<(), ApiError> {
        match event {
            Some(Event::PromptLogprobs(entries)) => {
                let parts = self.writers.iter_mut().map(|writer| writer.prompt_part(&entries)).enumerate();
                let parts: Vec<_> = parts.map(|(index, delta)| ChoiceDelta { index, delta }).collect();
                self.show(parts);
                Ok(())
            }
            Some(Event::Token(token)) => {
                self.take_token(&token);
                Ok(())
            }
            Some(Event::Finished { choice, reason, .. }) => {
                let is_out_of_quota = self.generation.as_ref().is_some_and(|running| running.is_out_of_quota(choice));
                let end = match reason {
                    _ if is_out_of_quota => AnswerEnd::Quota,
                    FinishReason::Length => AnswerEnd::Length,
                    FinishReason::Stop => AnswerEnd::Stop,
                    FinishReason::Aborted => {
                        self.end_failed();
                        return Err(ApiError::new(ErrorKind::Draining, "The server ended this request."));
                    }
                };
                self.finish(choice as usize, end);
                Ok(())
            }
            Some(Event::Failed { error, .. }) => {
                self.end_failed();
                Err(error.into())
            }
            None if self.generation.as_ref().is_some_and(Generation::is_unwritten) => {
                self.end_failed();
                Err(JournalUnavailable.into())
            }
            None => {
                self.end_failed();
                Err(ApiError::new(ErrorKind::EngineFailed, "The engine that ran this request has stopped."))
            }
        }
    }

    fn take_token(&mut self, token: &TokenEvent) {
        let index = token.choice as usize;
        if let Some(ranking) = &mut self.ranking {
            ranking.count(index, token);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.token(token.token);
        }
        let deltas = self.writers[index].token(token);
        self.show(deltas.into_iter().map(|delta| ChoiceDelta { index, delta }));
        if self.writers[index].has_stopped() {
            if let Some(generation) = &mut self.generation {
                generation.end_here(token.choice);
            }
            self.finish(index, AnswerEnd::Stop);
        }
    }

    fn finish(&mut self, index: usize, end: AnswerEnd) {
        self.num_open -= 1;
        if self.num_open == 0 {
            match self.settle_at {
                SettleAt::LastToken => self.settle(),
                SettleAt::Told => self.generation.iter_mut().for_each(Generation::rests),
            }
        }
        if self.num_open == 0
            && let Some(recorder) = self.recorder.take()
        {
            recorder.finish();
        }
        let mut deltas = self.writers[index].finish();
        deltas.push(Delta::Finished(self.writers[index].end(end)));
        self.show(deltas.into_iter().map(|delta| ChoiceDelta { index, delta }));
        if self.num_open == 0
            && let Some(ranking) = self.ranking.take()
        {
            self.pending.extend(ranking.best());
        }
    }

    fn show(&mut self, pieces: impl IntoIterator<Item = ChoiceDelta>) {
        match &mut self.ranking {
            Some(ranking) => pieces.into_iter().for_each(|piece| ranking.hold(piece)),
            None => self.pending.extend(pieces),
        }
    }

    /// What runs the prompt, for others who run it too. `None` once it is settled or its engine has ended.
    pub(crate) fn shared_model(&self) -> Option<SharedModel> {
        self.generation.as_ref().and_then(Generation::shared_model)
    }

    /// Further tokens that the model has read for this prompt.
    pub(crate) fn ran_beside(&mut self, read: Usage) {
        if let Some(generation) = &mut self.generation {
            generation.ran_beside(read);
        }
    }

    /// The answer that this is a part of ends with `error`. Where the server fails, parts that stand or fall together are
    /// free, and so is what nobody has got anything of.
    pub(crate) fn fail(&mut self, error: &ApiError) {
        let comes_to_nobody = self.settle_at == SettleAt::Told || self.is_unread;
        if let Some(generation) = self.generation.as_mut().filter(|_| comes_to_nobody && error.is_our_fault()) {
            generation.make_free();
        }
    }

    /// What others fall with is settled once they know of it.
    fn end_failed(&mut self) {
        if self.settle_at == SettleAt::LastToken {
            self.settle();
        }
    }

    /// The one way out of a generation, so that what is measured is what is settled.
    pub(crate) fn settle(&mut self) {
        let Some(generation) = self.generation.take() else { return };
        let used = generation.close();
        self.meter.ended(used);
        self.settled = Some(used);
    }
}

impl Drop for RunningPrompt {
    fn drop(&mut self) {
        self.settle();
    }
}
