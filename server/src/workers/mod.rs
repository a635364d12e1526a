//! Engines in processes of their own, one process for each partition, so that a fault of a device touches neither the
//! gateway nor the neighbours.
//!
//! A worker dials its gateway and says what it has loaded ([`WorkerFacts`]). From then on one stream of gRPC carries
//! orders one way and, for each step of an engine, one message the other way. On the gateway's side a [`WorkerSlot`] stands
//! for a partition and a [`RemoteReplica`] for each model on it, which is a [`crate::gateway::ReplicaDoor`] like that of an
//! engine in this process. On the worker's side [`mod@work`] hands orders to engines and what these say to the stream. A
//! [`supervise`]d worker is started again when it ends.

mod authority;
mod backoff;
mod calls;
mod dial;
mod facts;
mod gate;
mod job_table;
mod link;
mod mutual_tls;
mod remote_replica;
mod slot;
mod supervisor;
mod tap;
mod wire;
mod work;

use tonic::{Code, Status};

pub use authority::{Authority, AuthorityError, Credentials, LastDay};
pub use backoff::{Backoff, BackoffBounds};
pub use dial::{DialError, Dialled, dial};
pub use facts::{OfferedKind, OfferedModel, WorkerFacts};
pub use gate::{Gate, GateBounds};
pub use mutual_tls::{GatewayTls, MutualTlsError, Peer, WorkerTls};
pub use remote_replica::{RemoteReplica, RemoteReplicaBounds};
pub use slot::{Standing, WorkerSlot, WorkerSlotFigures, WorkersFrom};
pub use supervisor::{Ended, Keeping, supervise};
pub use tap::StepTap;
pub use work::{Revive, WorkError, WorkerModel, WorkerParts, work};

/// A message larger than this ends the connection: the log-probabilities of the longest prompts fit.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Messages that wait for the connection; what comes meanwhile waits where it is made, and goes with the next one.
const MAX_MESSAGES_ON_THE_WAY: usize = 4;

/// Of a stream that broke, for whoever reads a log. A peer that died leaves a connection that ends, which gRPC says in
/// the words of its own layers.
fn in_words(status: &Status) -> String {
    match status.code() {
        Code::Unknown | Code::Unavailable | Code::Cancelled => "the connection ended".to_owned(),
        _ => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests;
