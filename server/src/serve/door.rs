//! Who is let in.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use passerelle::config::Config;
use passerelle::gateway::keys::{KeyRing, StaticKey, read_key_file};
use passerelle::gateway::{Account, Administration, Authenticator, DataDir, Directory, Limit, Quota};
use passerelle_engine::clock::Clock;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::reload::owners;

/// How often an open server looks whether somebody made a key for it.
const LOOK_FOR_KEYS_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Whoever has a key, if the configuration or the data directory ever held any; else everybody on this machine.
    AsConfigured,
    /// Everybody on this machine. Only for a listener that this process itself talks to.
    Open,
}

/// Refuses a listener that other machines can reach and that nobody needs a key for.
pub(super) fn authenticator(
    config: &Config,
    door: Door,
    clock: &Arc<dyn Clock>,
    runtime: &Runtime,
) -> Result<(Authenticator, Option<Administration>)> {
    let limits = default_limits(config)?;
    if door == Door::Open {
        return Ok((Authenticator::open(Account::local(limits), None), None));
    }
    let fixed = fixed_keys(config)?;
    let data = DataDir::open(&config.server.data_dir)?;
    let directory = Directory::open(&data, Arc::clone(clock), "server")?;
    let ring = KeyRing::new(Some(directory.clone()), fixed, limits.clone(), Arc::clone(clock))?;
    let administration = Administration::open(&data, directory.clone())?;
    let is_open = ring.is_empty();
    config.check_door(!is_open)?;
    if is_open {
        owners(config)?.keys().for_each(|model| {
            tracing::warn!(model, "it belongs to an account, and this server asks for no key: nobody sees it");
        });
        runtime.spawn(warn_when_a_key_appears(directory));
        return Ok((Authenticator::open(Account::local(limits), Some(ring)), Some(administration)));
    }
    if config.server.api_key_file.is_none() {
        warn_of_unknown_owners(config, &directory)?;
    }
    if !ring.has_active_key() {
        tracing::warn!("every key is revoked or has expired: nobody is let in until `passerelle key create` makes one");
    }
    Ok((Authenticator::Keys(ring), Some(administration)))
}

/// Of a key file, accounts are made as its keys come.
fn warn_of_unknown_owners(config: &Config, directory: &Directory) -> Result<()> {
    for (model, account) in owners(config)? {
        if directory.require_account(&account).is_err() {
            tracing::warn!(
                model,
                "it belongs to the account {account}, which does not exist: nobody sees it until it is made"
            );
        }
    }
    Ok(())
}

/// Those of `server.api_key_file`.
pub(super) fn fixed_keys(config: &Config) -> Result<Vec<StaticKey>> {
    Ok(config.server.api_key_file.as_deref().map(read_key_file).transpose()?.unwrap_or_default())
}

/// Whoever makes a key expects it to be asked for, but a server that started open stays so: its listener may check less.
async fn warn_when_a_key_appears(directory: Directory) {
    // Trouble with the database is told at the next start; until then nothing here depends on it.
    while !directory.list_keys().is_ok_and(|keys| !keys.is_empty()) {
        sleep(LOOK_FOR_KEYS_EVERY).await;
    }
    tracing::warn!("a key was made, but this server started without any and asks for none: restart it");
}

/// The `[limits]` of the configuration.
pub(crate) fn default_limits(config: &Config) -> Result<Quota> {
    let written = &config.limits;
    let limits = [
        written.requests_per_minute.map(Limit::requests_per_minute),
        written.tokens_per_minute.map(Limit::tokens_per_minute),
        written.concurrent_requests.map(Limit::concurrent_requests),
    ];
    Ok(Quota::new(limits.into_iter().flatten().collect())?)
}

#[cfg(test)]
mod tests {
    use passerelle::gateway::AccountPath;
    use passerelle::gateway::account::{ModelAccess, Scopes, ServiceClass};
    use passerelle::gateway::directory::NewKey;
    use passerelle_engine::clock::ManualClock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_open_server_notices_the_first_key() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = DataDir::open(folder.path()).expect("the folder is writable");
        let directory = Directory::open(&data, Arc::new(ManualClock::default()), "test").expect("it was just made");
        let waiting = tokio::spawn(warn_when_a_key_appears(directory.clone()));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let (scopes, models, account) = (Scopes::default(), ModelAccess::All, AccountPath::root());
        let key =
            NewKey { account, name: "alice".into(), scopes, models, class: ServiceClass::Standard, valid_for: None };
        directory.create_key(key).expect("the name is free");
        waiting.await.expect("it ends by itself");
    }
}
