//! A server that is ready to be measured: reachable, its model known, prompts of exact lengths at hand.

use std::path::Path;

use serde::Deserialize;

use crate::figures::RunFigures;
use crate::http::{Client, Connect, HttpError, Request};
use crate::metrics_page::MetricsPage;
use crate::plan::{Keys, Plan, PlanError, Target, Vocabulary};
use crate::progress::Progress;
use crate::prompts::PromptMaker;
use crate::run::{Run, RunOptions, run};
use crate::scenario::Scenario;
use crate::tokens::{Tokenizer, TokensError};

#[derive(Debug)]
pub struct Session<C: Connect> {
    pub client: Client<C>,
    pub target: Target,
    pub maker: PromptMaker<C>,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("{authority}: {source}")]
    Unreachable { authority: String, source: HttpError },
    #[error("{authority}: GET /v1/models answered {status}: {}", remedy(*status))]
    NoModels { authority: String, status: u16 },
    #[error("{authority} serves no model")]
    NoModel { authority: String },
    #[error(transparent)]
    Tokens(#[from] TokensError),
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    /// Of a Passerelle: whether it can be asked.
    #[serde(default)]
    state: Option<String>,
}

impl<C: Connect> Session<C> {
    /// Without `model` the server's first one is taken; without `tokenizer` the server counts tokens.
    pub async fn open(
        client: Client<C>,
        model: Option<&str>,
        keys: Keys,
        tokenizer: Option<&Path>,
    ) -> Result<Self, SessionError> {
        let key = any_key(&keys);
        let model = model_of(&client, model, key.as_deref()).await?;
        let tokenizer = match tokenizer {
            Some(file) => Tokenizer::local(file)?,
            None => Tokenizer::of_server(client.clone(), &model, key.as_deref()).await?,
        };
        let maker = PromptMaker::new(tokenizer).await?;
        Ok(Self { client, target: Target { model, keys, vocabulary: Vocabulary::default() }, maker })
    }

    /// A server that gets the prompts of another, whose `maker` this is: it need not be able to count tokens.
    pub async fn beside(
        maker: PromptMaker<C>,
        client: Client<C>,
        model: Option<&str>,
        keys: Keys,
    ) -> Result<Self, SessionError> {
        let model = model_of(&client, model, any_key(&keys).as_deref()).await?;
        Ok(Self { client, target: Target { model, keys, vocabulary: Vocabulary::default() }, maker })
    }

    /// The same, asked with the fields of `vocabulary`.
    #[must_use]
    pub fn speaking(mut self, vocabulary: Vocabulary) -> Self {
        self.target.vocabulary = vocabulary;
        self
    }

    /// What the server says that it is: vLLM's `/version`, or the labels of Passerelle's `passerelle_info`.
    pub async fn server_version(&self) -> Option<String> {
        let key = self.target.keys.default.as_deref();
        let request = Request { method: "GET", path: "/version", api_key: key, body: b"" };
        if let Ok((200, body)) = self.client.fetch(&request).await {
            let answer: serde_json::Value = serde_json::from_slice(&body).ok()?;
            return Some(answer.get("version")?.as_str()?.to_owned());
        }
        MetricsPage::fetch(&self.client, key)
            .await?
            .labels("passerelle_info")
            .map(|labels| format!("passerelle {labels}"))
    }

    pub async fn plan(&self, scenario: &Scenario) -> Result<Plan, PlanError> {
        self.plan_watched(scenario, &Progress::default()).await
    }

    /// Making the prompts of many requests takes a while: `progress` counts them.
    pub async fn plan_watched(&self, scenario: &Scenario, progress: &Progress) -> Result<Plan, PlanError> {
        Plan::make(scenario, &self.maker, &self.target, progress).await
    }

    /// Plans and runs `scenario`.
    pub async fn run(&self, scenario: &Scenario, options: &RunOptions) -> Result<(Plan, Run, RunFigures), PlanError> {
        let plan = self.plan(scenario).await?;
        let run = run(&self.client, &plan, options).await;
        let figures = RunFigures::of(&run, &plan);
        Ok((plan, run, figures))
    }
}

fn any_key(keys: &Keys) -> Option<String> {
    keys.default.clone().or_else(|| keys.by_tenant.values().next().cloned())
}

fn remedy(status: u16) -> &'static str {
    match status {
        401 | 403 => "it needs a key, or another one: OPENAI_API_KEY or --keys",
        429 => "it limits how often it is asked; wait, or name the model with --model",
        200 => "that is no list of models; name the model with --model",
        _ => "name the model with --model",
    }
}

async fn model_of<C: Connect>(
    client: &Client<C>,
    model: Option<&str>,
    api_key: Option<&str>,
) -> Result<String, SessionError> {
    match model {
        Some(model) => Ok(model.to_owned()),
        None => first_model(client, api_key).await,
    }
}

async fn first_model<C: Connect>(client: &Client<C>, api_key: Option<&str>) -> Result<String, SessionError> {
    let authority = client.endpoint().authority.clone();
    let request = Request { method: "GET", path: "/v1/models", api_key, body: b"" };
    let (status, body) = match client.fetch(&request).await {
        Ok(answer) => answer,
        Err(source) => return Err(SessionError::Unreachable { authority, source }),
    };
    let Ok(models) = serde_json::from_slice::<Models>(&body) else {
        return Err(SessionError::NoModels { authority, status });
    };
    let mut askable = models.data.into_iter().filter(|model| model.state.as_deref() != Some("failed"));
    askable.next().map(|model| model.id).ok_or(SessionError::NoModel { authority })
}
