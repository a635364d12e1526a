//! All of what is kept, to take away: the ledger as CSV, and a copy of everything. For whoever governs the root.

use std::io::{self, Write};

use axum::extract::{Request, State};
use axum::response::Response;

use super::{administrator, require_governed};
use crate::api::desk::{Desk, DeskVisit};
use crate::api::download::download;
use crate::api::errors::{ApiError, ErrorKind};
use crate::gateway::journal::UsageReader;
use crate::gateway::journal::export::{ExportError, write_csv};
use crate::gateway::{AccountPath, DataDir, DataError};

#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Data(#[from] DataError),
}

/// With a reader of its own, so that whoever reads slowly holds up nobody.
pub(super) async fn export<D: Desk>(State(desk): State<D>, request: Request) -> Result<Response, ApiError> {
    let data = data_of_everybody(&desk, &request)?;
    let reader = UsageReader::open(&data).map_err(|error| {
        tracing::error!(%error, "the ledger cannot be read");
        ApiError::new(ErrorKind::Internal, "The ledger cannot be read at the moment.")
    })?;
    Ok(download("text/csv; charset=utf-8", move |out| {
        write_csv(&reader, out).map(drop).map_err(|error: ExportError| error)
    }))
}

/// Everything at one instant, as `passerelle restore` takes it.
pub(super) async fn backup<D: Desk>(State(desk): State<D>, request: Request) -> Result<Response, ApiError> {
    let data = data_of_everybody(&desk, &request)?;
    let copy = move |out: &mut dyn Write| -> Result<(), CopyError> {
        io::copy(&mut data.copy_of_now()?, out)?;
        Ok(())
    };
    Ok(download("application/vnd.sqlite3", move |out| copy(out)))
}

fn data_of_everybody(desk: &impl Desk, request: &Request) -> Result<DataDir, ApiError> {
    let DeskVisit { caller, administration } = administrator(desk, request.headers())?;
    require_governed(&caller, &AccountPath::root())?;
    Ok(administration.data)
}
