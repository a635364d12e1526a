//! A wall clock that somebody sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use passerelle::gateway::account::{ModelAccess, Scopes, ServiceClass};
use passerelle::gateway::directory::NewKey;
use passerelle::gateway::{AccountPath, DataDir, Directory};
use passerelle_engine::clock::{Clock, SystemClock};

use crate::common::{Options, Server};

#[derive(Debug)]
struct SetClock {
    monotonic: SystemClock,
    wall_seconds: AtomicU64,
}

impl Clock for SetClock {
    fn now(&self) -> Duration {
        self.monotonic.now()
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(self.wall_seconds.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn a_wall_clock_that_is_set_back_lets_no_expired_key_in_again() {
    const START: u64 = 1_800_000_000;
    let clock = Arc::new(SetClock { monotonic: SystemClock::new(), wall_seconds: AtomicU64::new(START) });
    let folder = tempfile::tempdir().unwrap();
    let directory = Directory::open(&DataDir::open(folder.path()).unwrap(), clock.clone(), "test").unwrap();
    let (account, name) = (AccountPath::root(), "alice".to_owned());
    let (scopes, models, class) = (Scopes::default(), ModelAccess::All, ServiceClass::Standard);
    let valid_for = Some(Duration::from_secs(60));
    let (key, _) = directory.create_key(NewKey { account, name, scopes, models, class, valid_for }).unwrap();
    let server = Server::with(Options { administered: Some(folder), clock: clock.clone(), ..Options::default() }).await;
    let client = server.client().with("authorization", &format!("Bearer {}", key.reveal()));
    let mut statuses = Vec::new();
    for seconds in [START + 59, START + 60, START] {
        clock.wall_seconds.store(seconds, Ordering::SeqCst);
        statuses.push(client.get("/v1/models").await.status);
    }
    assert_eq!(statuses, [200, 401, 401]);
}
