//! Brings one prompt, with its reservation, to a replica that takes it: an engine or an upstream, and another one if the
//! first does not answer.

use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::{Request as EngineRequest, SharedModel, Usage};

use super::delta::ChoiceDelta;
use super::errors::ApiError;
use super::ids::random_id;
use super::meter::PromptMeter;
use super::prepare::{AskedLength, engine_overflow};
use super::relayed::{ChoiceReader, PromptCount, RelayedChoice, Sent};
use super::running::{RunningPrompt, Writers};
use super::state::{AppState, Serving};
use super::wire::answer::AnswerKind;
use super::wire::tier::tier_name;
use crate::gateway::journal::EntryId;
use crate::gateway::replica::UpstreamSide;
use crate::gateway::{
    Attempts, Call, CallSize, Failure, Generation, NotRelayed, OnBehalf, PrefixHint, Relay, Replica, ReplicaRefusal,
    Reservation, Verdict,
};
use crate::text::TextModel;

/// What engines call the number of answers.
const ENGINES_CHOICES: &str = "n";

/// A prompt's answers wherever they run.
#[derive(Debug)]
pub(crate) enum LivePrompt {
    Engine(Box<RunningPrompt>),
    /// Upstreams are asked for one choice.
    Upstream(Box<RelayedChoice>),
}

impl LivePrompt {
    /// The next piece; `None` after every choice has `Finished`. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<ChoiceDelta>, ApiError> {
        match self {
            Self::Engine(prompt) => prompt.next().await,
            Self::Upstream(choice) => Ok(choice.next().await?.map(|delta| ChoiceDelta { index: 0, delta })),
        }
    }

    /// `None` for what does not run here.
    pub(crate) fn shared_model(&self) -> Option<SharedModel> {
        match self {
            Self::Engine(prompt) => prompt.shared_model(),
            Self::Upstream(_) => None,
        }
    }

    /// See [`RunningPrompt::ran_beside`]. Upstreams run nothing beside.
    pub(crate) fn ran_beside(&mut self, read: Usage) {
        if let Self::Engine(prompt) = self {
            prompt.ran_beside(read);
        }
    }

    /// What is not settled yet. An upstream's answer is settled at its end.
    pub(crate) fn settle(&mut self) {
        if let Self::Engine(prompt) = self {
            prompt.settle();
        }
    }

    /// The request's answer has failed as a whole.
    pub(crate) fn fail(&mut self, error: &ApiError) {
        match self {
            Self::Engine(prompt) => prompt.fail(error),
            Self::Upstream(choice) => choice.fall_with(error),
        }
    }

    /// So far, then what was settled. Never falls while the prompt runs.
    pub(crate) fn usage(&self) -> Usage {
        match self {
            Self::Engine(prompt) => prompt.usage(),
            Self::Upstream(choice) => choice.usage(),
        }
    }
}

/// One prompt of a request, as each kind of replica takes it.
pub(crate) struct Launch<'a> {
    pub(crate) state: &'a AppState,
    pub(crate) serving: &'a Serving,
    pub(crate) model: &'a str,
    pub(crate) hint: PrefixHint,
    /// On the server's clock.
    pub(crate) arrived: Duration,
    /// `None`: no engine here has the model.
    pub(crate) for_engine: Option<EngineJob<'a>>,
    /// `None`: no upstream has it.
    pub(crate) for_upstream: Option<UpstreamJob>,
}

/// A prompt as engines take it.
pub(crate) struct EngineJob<'a> {
    pub(crate) request: &'a (dyn Fn() -> (EngineRequest, Writers) + Sync),
    pub(crate) prompt_tokens: usize,
    pub(crate) asked: AskedLength<'a>,
    /// What the caller calls the number of answers.
    pub(crate) choices_field: &'static str,
}

impl EngineJob<'_> {
    /// An engine's refusal, under the names that the caller has for things.
    fn refused(&self, error: ReplicaRefusal) -> ApiError {
        match error {
            ReplicaRefusal::ExceedsContext(_) => engine_overflow(error.into(), self.prompt_tokens, self.asked),
            ReplicaRefusal::Refused { parameter: Some(ENGINES_CHOICES), .. } => {
                ApiError::from(error).param(self.choices_field)
            }
            error => error.into(),
        }
    }
}

/// A prompt as upstreams take it.
pub(crate) struct UpstreamJob {
    pub(crate) call: Call,
    pub(crate) kind: AnswerKind,
    pub(crate) prompt: PromptCount,
    pub(crate) max_tokens: u32,
    pub(crate) sent: Sent,
    /// Of the model's text side, if it is known here.
    pub(crate) text: Option<Arc<TextModel>>,
}

/// One try that led to nothing.
struct Failed {
    reservation: Reservation,
    error: ApiError,
    verdict: Verdict,
}

impl Launch<'_> {
    /// All tries run under the one reservation, which is withdrawn if all fail.
    pub(crate) async fn go(&self, mut reservation: Reservation) -> Result<LivePrompt, ApiError> {
        let mut attempts = Attempts::new(self.serving.retry);
        let on_behalf = self.on_behalf(&reservation);
        let mut last_error = None;
        loop {
            let replica = match self.serving.router.pick(self.model, self.hint, attempts.passed()) {
                Ok(replica) => replica,
                Err(error) => {
                    reservation.withdraw();
                    return Err(last_error.unwrap_or_else(|| error.into()));
                }
            };
            let tried = match replica.as_upstream() {
                None => self.on_engine(&replica, &mut attempts, reservation),
                Some(side) => self.on_upstream((&replica, side), (&mut attempts, on_behalf.clone()), reservation).await,
            };
            let failed = match tried {
                Ok(prompt) => return Ok(prompt),
                Err(failed) => *failed,
            };
            reservation = failed.reservation;
            if failed.verdict == Verdict::GiveUp {
                reservation.withdraw();
                return Err(failed.error);
            }
            last_error = Some(failed.error);
        }
    }

    fn on_engine(
        &self,
        replica: &Arc<Replica>,
        attempts: &mut Attempts,
        reservation: Reservation,
    ) -> Result<LivePrompt, Box<Failed>> {
        let Some(job) = &self.for_engine else {
            let (error, verdict) = (no_replica(), attempts.cannot_serve(replica.id()));
            return Err(Box::new(Failed { reservation, error, verdict }));
        };
        let (request, writers) = (job.request)();
        match Generation::start(replica, request, reservation) {
            Ok(generation) => {
                let running = RunningPrompt::new(generation, writers, self.meter());
                Ok(LivePrompt::Engine(Box::new(running)))
            }
            Err(refused) => {
                let verdict = attempts.engine_refused(replica.id(), &refused.error);
                Err(Box::new(Failed { reservation: refused.reservation, error: job.refused(refused.error), verdict }))
            }
        }
    }

    async fn on_upstream(
        &self,
        (replica, side): (&Arc<Replica>, &UpstreamSide),
        (attempts, on_behalf): (&mut Attempts, Option<OnBehalf>),
        reservation: Reservation,
    ) -> Result<LivePrompt, Box<Failed>> {
        let Some(job) = &self.for_upstream else {
            let (error, verdict) = (no_replica(), attempts.cannot_serve(replica.id()));
            return Err(Box::new(Failed { reservation, error, verdict }));
        };
        let counted = job.prompt.exact().unwrap_or(0);
        let size = CallSize {
            counted_prompt_tokens: counted,
            reserved_tokens: u64::from(job.prompt.about()) + u64::from(job.max_tokens),
        };
        let reader = ChoiceReader::new(job.kind, job.prompt, job.max_tokens, job.text.clone());
        let read = |data: &str| reader.read(data);
        let call = Call { on_behalf, ..job.call.clone() };
        let started = Relay::start(replica, side, (&call, size), reservation, read).await;
        self.count_try(side, started.as_ref().map(|_| ()).map_err(|not| not.failure.as_ref()));
        match started {
            Ok((relay, first)) => {
                let relayed = RelayedChoice::new(relay, reader, first, self.meter(), job.sent);
                Ok(LivePrompt::Upstream(Box::new(relayed)))
            }
            Err(not_relayed) => {
                let NotRelayed { failure, reservation } = *not_relayed;
                let (error, verdict) = match &failure {
                    Some(failure) => (failure.into(), attempts.upstream_failed(replica.id(), failure)),
                    None => (no_replica(), attempts.not_let_in(replica.id())),
                };
                Err(Box::new(Failed { reservation, error, verdict }))
            }
        }
    }

    fn count_try(&self, side: &UpstreamSide, how: Result<(), Option<&Failure>>) {
        let outcome = match how {
            Ok(()) => "answered",
            Err(None) => return,
            Err(Some(failure)) => {
                if failure.is_illness() {
                    tracing::warn!(upstream = side.name(), model = self.model, %failure, "an upstream failed a request");
                }
                failure.label()
            }
        };
        self.state.metrics().upstream_tried(self.model, side.name(), outcome);
    }

    /// Named before the first try, so that all tries are one to whoever runs them: by its entry, which makes two ledgers
    /// match, and by chance, since other gateways have entries of the same numbers.
    fn on_behalf(&self, reservation: &Reservation) -> Option<OnBehalf> {
        self.for_upstream.as_ref()?;
        let (account, tier) = (reservation.account().path.clone(), tier_name(reservation.class()));
        let entry = reservation.entry().map_or_else(String::new, |EntryId(number)| format!("{number}_"));
        Some(OnBehalf { reservation: random_id(&format!("rsv_{entry}"))?.into(), account, tier })
    }

    fn meter(&self) -> PromptMeter {
        PromptMeter::new(self.state.clone(), self.model, self.arrived)
    }
}

fn no_replica() -> ApiError {
    ApiError::new(super::errors::ErrorKind::NoReplica, "No replica of this model is ready.")
}
