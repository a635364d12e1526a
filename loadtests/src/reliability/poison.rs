//! Requests that must be refused, each by itself.

use std::time::Duration;

use super::{CheckError, Context};
use crate::generate::{Call, Route, generate};
use crate::http::Connect;
use crate::plan::poison_bodies;
use crate::record::{Ending, Expect};
use crate::verdict::Verdict;

const MAX_WAIT: Duration = Duration::from_secs(5);

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let promise = format!("what makes no sense is answered with a 4xx within {} s", MAX_WAIT.as_secs());
    let mut verdict = Verdict::new("poison", promise);
    let bodies = poison_bodies(&context.session.target.model);
    verdict.tried(format!("{} requests, one after the other", bodies.len()));
    for (name, body) in bodies {
        let call = Call {
            route: Route::Chat,
            body,
            api_key: context.session.target.keys.of(None)?,
            leave_after: None,
            timeout: MAX_WAIT,
            expect: Expect::Answer,
        };
        let ending = generate(&context.session.client, &call).await.ending;
        let shown = match &ending {
            Ending::Refused { status, .. } => status.to_string(),
            other => format!("{other:?}"),
        };
        verdict.require(matches!(ending, Ending::Refused { status: 400..=499, .. }), || format!("{name}: {shown}"));
        verdict.figure(name, shown);
    }
    context.require_alive(&mut verdict, "afterwards").await;
    Ok(verdict)
}
