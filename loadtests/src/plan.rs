//! What is sent, and when: made from a scenario before the first request leaves, so that the run itself only sends.

mod body;
mod planner;
mod poison;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::arrivals::Arrivals;
use crate::dataset::{DatasetError, Deck};
use crate::generate::Call;
use crate::http::Connect;
use crate::progress::Progress;
use crate::prompts::PromptMaker;
use crate::record::Place;
use crate::rng::Rng;
use crate::scenario::{Objectives, Scenario, Traffic};
use crate::tokens::TokensError;
use crate::trace::TraceError;
use planner::{Planner, Shared};

pub use body::BodyTemplate;
pub use poison::poison_bodies;

/// A scenario's requests are at most so many: they are all made before the run.
pub const MAX_JOBS: usize = 200_000;

#[derive(Debug, Clone)]
pub struct Plan {
    pub traffic: Vec<TrafficLabel>,
    /// Sent at their times, in order.
    pub open: Vec<Job>,
    /// Sent by users who wait for their answers.
    pub closed: Vec<ClosedGroup>,
    pub warmup: Duration,
    /// No request is sent after it.
    pub duration: Duration,
    pub objectives: Objectives,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TrafficLabel {
    pub name: String,
    pub tenant: Option<String>,
}

#[derive(Debug, Clone)]
pub struct ClosedGroup {
    pub concurrency: usize,
    pub jobs: Vec<Job>,
    pub supply: Supply,
}

/// What closed users do when all of their requests are asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Supply {
    /// They go: the scenario says how many requests there are.
    Once,
    /// They ask them again from the first, until the scenario's end.
    Again,
}

#[derive(Debug, Clone)]
pub struct Job {
    pub index: usize,
    pub traffic: usize,
    /// Zero where the arrivals are closed.
    pub at: Duration,
    pub script: Script,
}

impl Job {
    /// Of its first turn, when it is asked for the first time.
    pub(crate) fn place(&self, intended: Duration) -> Place {
        Place { index: self.index, lap: 0, turn: 0, traffic: self.traffic, intended }
    }
}

#[derive(Debug, Clone)]
pub enum Script {
    Single(Call),
    Conversation(Conversation),
}

#[derive(Debug, Clone)]
pub struct Conversation {
    /// What the user says at each turn, and how long the answer may be.
    pub turns: Vec<(String, u32)>,
    pub think: Duration,
    pub template: BodyTemplate,
    /// The call of each turn, but for its body.
    pub call: Call,
}

/// Whom the requests are for.
#[derive(Debug, Clone, Default)]
pub struct Target {
    pub model: String,
    pub keys: Keys,
    pub vocabulary: Vocabulary,
}

/// Which fields a server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vocabulary {
    /// Also those with which vLLM, SGLang and Passerelle make the length of an answer sure.
    #[default]
    Extended,
    /// OpenAI's own and no others, for servers that refuse what they do not know.
    Plain,
}

/// API keys, by the names of tenants.
#[derive(Clone, Default)]
pub struct Keys {
    pub default: Option<String>,
    pub by_tenant: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error("trace: {0}")]
    Trace(#[from] TraceError),
    #[error("data set: {0}")]
    Dataset(#[from] DatasetError),
    #[error("the scenario would send more than {MAX_JOBS} requests; shorten it or lower its rates")]
    TooMany,
    #[error("tenant `{0}` has no key in the file of keys")]
    NoKey(String),
}

impl Keys {
    /// The key of `tenant`; without any keys at all everyone goes without.
    pub fn of(&self, tenant: Option<&str>) -> Result<Option<String>, PlanError> {
        match tenant.map(|tenant| (tenant, self.by_tenant.get(tenant))) {
            None => Ok(self.default.clone()),
            Some((_, Some(key))) => Ok(Some(key.clone())),
            Some((tenant, None)) if !self.by_tenant.is_empty() => Err(PlanError::NoKey(tenant.to_owned())),
            Some((_, None)) => Ok(self.default.clone()),
        }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let names: Vec<&String> = self.by_tenant.keys().collect();
        formatter.debug_struct("Keys").field("tenants", &names).finish_non_exhaustive()
    }
}

impl Plan {
    pub async fn make<C: Connect>(
        scenario: &Scenario,
        maker: &PromptMaker<C>,
        target: &Target,
        progress: &Progress,
    ) -> Result<Self, PlanError> {
        let label = |traffic: &Traffic| TrafficLabel { name: traffic.name.clone(), tenant: traffic.tenant.clone() };
        let mut plan = Self {
            traffic: scenario.traffic.iter().map(label).collect(),
            open: Vec::new(),
            closed: Vec::new(),
            warmup: Duration::from_secs_f64(scenario.warmup_s),
            duration: scenario.duration(),
            objectives: scenario.objectives,
        };
        for (index, traffic) in scenario.traffic.iter().enumerate() {
            let rng = Rng::for_part(scenario.seed, index as u64);
            // Where answers end when they will, other words are another load.
            let is_sure = traffic.request.ignore_eos && target.vocabulary == Vocabulary::Extended;
            let wording = if is_sure { scenario.wording } else { 0 };
            // Two scenarios of one seed have no prompt in common, which a server's cache would know from the first of them.
            let of_words = scenario.seed ^ Rng::seed_of(&scenario.description);
            let words = Rng::for_part(of_words, ((1 + wording) << 32) | index as u64);
            let labels = &mut plan.traffic;
            let (shared, deck) = (Shared::default(), Deck::default());
            let mut planner =
                Planner { scenario, traffic, index, maker, target, progress, rng, words, shared, deck, labels };
            let jobs = planner.jobs().await?;
            match traffic.arrivals.scaled(scenario.rate_scale) {
                Arrivals::Closed { concurrency } => {
                    let supply = if traffic.requests.is_some() { Supply::Once } else { Supply::Again };
                    plan.closed.push(ClosedGroup { concurrency: concurrency as usize, jobs, supply });
                }
                _ => plan.open.extend(jobs),
            }
            if plan.open.len() > MAX_JOBS {
                return Err(PlanError::TooMany);
            }
        }
        plan.number();
        Ok(plan)
    }

    /// Every job, whatever its arrival.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.open.iter().chain(self.closed.iter().flat_map(|group| &group.jobs))
    }

    /// Puts open jobs in the order of their times and numbers all.
    fn number(&mut self) {
        self.open.sort_by_key(|job| job.at);
        let closed = self.closed.iter_mut().flat_map(|group| &mut group.jobs);
        for (index, job) in self.open.iter_mut().chain(closed).enumerate() {
            job.index = index;
        }
    }
}
