//! Administration of a server that runs, by whoever owns its data directory: `/admin/v1` on a socket in it, which nobody
//! else can open.

use std::path::Path;

use passerelle::api::{self, OperatorBackend, ServeConfig};
use tokio::runtime::Runtime;

use super::listener::listen_to_owner;

/// In the data directory.
pub(crate) const ADMIN_SOCKET: &str = "admin.sock";

/// Answers until the runtime ends. Where no socket can be, the commands of administration change the data directory itself,
/// which a server follows.
pub(super) fn open(data_dir: &Path, backend: OperatorBackend, config: ServeConfig, runtime: &Runtime) {
    let _in_runtime = runtime.enter();
    match listen_to_owner(&data_dir.join(ADMIN_SOCKET)) {
        Ok(listener) => drop(runtime.spawn(api::serve(listener, backend.router(), config, std::future::pending()))),
        Err(error) => tracing::warn!(%error, "no socket for administration in the data directory"),
    }
}
