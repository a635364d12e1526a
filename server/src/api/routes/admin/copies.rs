//! All of what is kept, to take away: the ledger as CSV, and a copy of everything. For whoever governs the root.

use std::io::{self, Write};

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use super::audited::Audited;
use super::{administrator, blocking, no_query, require_governed};
use crate::api::admin_backend::{AdminBackend, AdminCaller};
use crate::api::download::download;
use crate::api::errors::{ApiError, ErrorKind};
use crate::gateway::directory::Noted;
use crate::gateway::journal::UsageReader;
use crate::gateway::journal::export::{Exported, write_csv};
use crate::gateway::{AccountPath, Administration};

/// Beside a copy that the audit log has no room for.
pub(crate) const AUDIT_ENTRY: HeaderName = HeaderName::from_static("x-passerelle-audit-entry");
/// What the audit log calls them.
const LEDGER: &str = "ledger";
const EVERYTHING: &str = "everything";

/// With a reader of its own, so that whoever reads slowly holds up nobody. The audit log says where the chain ended.
pub(super) async fn export<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let Administration { data, directory, .. } = of_everybody(&backend, &request)?;
    no_query(&request)?;
    let reader = UsageReader::open(&data).map_err(|error| {
        tracing::error!(%error, "the ledger cannot be read");
        ApiError::new(ErrorKind::Internal, "The ledger cannot be read at the moment.")
    })?;
    let audited = Audited::begin_reading(directory, "export", LEDGER).await?;
    let noted = audited.noted();
    let response = download("text/csv; charset=utf-8", move |out| {
        let exported = write_csv(&reader, out).and_then(|exported| Ok(out.flush().map(|()| exported)?));
        let said = |Exported { entries, head }: &Exported| format!(": {entries} entries, to {}", head.hex());
        audited.end_here(&exported.as_ref().map(said));
        exported.map(drop)
    });
    Ok(told(response, noted))
}

/// Everything at one instant, as `passerelle restore` takes it.
pub(super) async fn backup<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let Administration { data, directory, .. } = of_everybody(&backend, &request)?;
    no_query(&request)?;
    let audited = Audited::begin_reading(directory, "back up", EVERYTHING).await?;
    let noted = audited.noted();
    // Before the answer begins, so that a refusal is told as one.
    let mut copy = match blocking(move || Ok(data.copy_of_now()?)).await {
        Ok(copy) => copy,
        Err(error) => {
            audited.end(&Err(error.clone())).await;
            return Err(error);
        }
    };
    let response = download("application/vnd.sqlite3", move |out| {
        let copied = io::copy(&mut copy, out).and_then(|_| out.flush());
        audited.end_here(&copied.as_ref().map(|()| String::new()));
        copied
    });
    Ok(told(response, noted))
}

/// Whoever takes a copy away is told that the audit log does not have it yet.
fn told(mut response: Response, noted: Noted) -> Response {
    if noted == Noted::Owed {
        response.headers_mut().insert(AUDIT_ENTRY, HeaderValue::from_static("owed"));
    }
    response
}

fn of_everybody(backend: &impl AdminBackend, request: &Request) -> Result<Administration, ApiError> {
    let AdminCaller { caller, administration } = administrator(backend, request.headers())?;
    require_governed(&caller, &AccountPath::root())?;
    Ok(administration)
}
