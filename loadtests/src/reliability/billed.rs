//! What a server's own ledger says was used, as Passerelle tells it at `/v1/me/usage`.

use std::time::Duration;

use serde::Deserialize;

use super::{CheckError, Context};
use crate::http::{Connect, Request};

const BETWEEN_READINGS: Duration = Duration::from_millis(200);

/// Settled, by all below the account of the key.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Billed {
    pub(super) requests: u64,
    pub(super) output_tokens: u64,
}

#[derive(Deserialize)]
struct Usage {
    data: Vec<Sum>,
}

#[derive(Deserialize)]
struct Sum {
    requests: u64,
    output_tokens: u64,
}

impl Billed {
    pub(super) async fn read<C: Connect>(context: &Context<'_, C>) -> Result<Self, CheckError> {
        let key = context.session.target.keys.of(None)?;
        let request = Request { method: "GET", path: "/v1/me/usage", api_key: key.as_deref(), body: b"" };
        context.session.client.forget_idle();
        let (status, body) = context.session.client.fetch(&request).await?;
        let usage = serde_json::from_slice::<Usage>(&body).map_err(|_| {
            CheckError::CannotTry(format!("GET /v1/me/usage answered {status}: give the key of an account (--keys)"))
        })?;
        Ok(usage.data.iter().fold(Self::default(), |billed, sum| Self {
            requests: billed.requests + sum.requests,
            output_tokens: billed.output_tokens + sum.output_tokens,
        }))
    }

    /// Once two readings in a row agree: what was settled is written down some milliseconds later.
    pub(super) async fn at_rest<C: Connect>(context: &Context<'_, C>) -> Result<Self, CheckError> {
        let mut billed = Self::read(context).await?;
        loop {
            tokio::time::sleep(BETWEEN_READINGS).await;
            let again = Self::read(context).await?;
            if again == billed {
                return Ok(billed);
            }
            billed = again;
        }
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            output_tokens: self.output_tokens.saturating_sub(before.output_tokens),
        }
    }
}
