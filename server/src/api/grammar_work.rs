//! Grammars are compiled beside all other text work, a few at a time, each for a bounded time.
//!
//! Nothing interrupts the compiler. What takes too long is answered at its time and keeps its place until it ends, so that
//! no more than the places are ever lost to such grammars, and prompts of others never wait for them. An account has all places
//! but one, so that it loses none of the others' for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore, oneshot};
use tokio::time::timeout;

use super::errors::{ApiError, ErrorKind};
use super::fields::invalid;
use crate::gateway::AccountPath;

/// How many grammars are compiled at once, and for how long at most a request waits: for a place, and then for its grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileBounds {
    pub max_concurrent: usize,
    pub timeout: Duration,
}

impl Default for CompileBounds {
    fn default() -> Self {
        Self { max_concurrent: 2, timeout: Duration::from_secs(10) }
    }
}

#[derive(Debug)]
pub(crate) struct GrammarWork {
    places: Arc<Semaphore>,
    /// Of accounts that compile or wait to.
    of_accounts: Mutex<HashMap<AccountPath, Arc<Semaphore>>>,
    per_account: usize,
    timeout: Duration,
}

impl GrammarWork {
    pub(crate) fn new(bounds: CompileBounds) -> Self {
        let places = bounds.max_concurrent.max(1);
        let per_account = (places - 1).max(1);
        let (places, of_accounts) = (Arc::new(Semaphore::new(places)), Mutex::default());
        Self { places, of_accounts, per_account, timeout: bounds.timeout }
    }

    /// Runs `compile` for the field `param` of a request of `account`. Errors with a 503 when no place is free in time,
    /// and with a 400 when the grammar takes too long.
    pub(crate) async fn run<T, F>(&self, account: &AccountPath, param: &str, compile: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ApiError> + Send + 'static,
    {
        let own = self.places_of(account);
        let places = async { Ok((own.acquire_owned().await?, Arc::clone(&self.places).acquire_owned().await?)) };
        let place = timeout(self.timeout, places).await.map_err(|_| busy(param))?;
        let place = place.map_err(|_: AcquireError| failed())?;
        let (told, compiled) = oneshot::channel();
        let work = move || {
            let outcome = compile();
            drop(place);
            // Nobody listens once the time is over.
            let _ = told.send(outcome);
        };
        // Not one of the runtime's threads: it waits for them when it ends, and a process that drains must end.
        thread::Builder::new().name("compile".to_owned()).spawn(work).map_err(|_| failed())?;
        match timeout(self.timeout, compiled).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                // What a panic says may quote the grammar.
                tracing::error!("compiling a grammar panicked");
                Err(failed())
            }
            Err(_) => Err(invalid(param, format!("takes more than {:?} to compile", self.timeout))),
        }
    }
}

impl GrammarWork {
    fn places_of(&self, account: &AccountPath) -> Arc<Semaphore> {
        let mut all = self.of_accounts.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever holds a place, or waits for one, holds what they are of.
        all.retain(|_, own| Arc::strong_count(own) > 1);
        let own = all.entry(account.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.per_account)));
        Arc::clone(own)
    }
}

fn busy(param: &str) -> ApiError {
    let message = "The server compiles as many grammars as it may; try again shortly.";
    ApiError::new(ErrorKind::QueueFull, message).param(param)
}

fn failed() -> ApiError {
    ApiError::new(ErrorKind::Internal, "The server failed on this request.")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn lab() -> AccountPath {
        "lab".parse().unwrap()
    }

    fn one_place() -> GrammarWork {
        GrammarWork::new(CompileBounds { max_concurrent: 1, ..CompileBounds::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_grammar_that_takes_too_long_is_refused_and_keeps_its_place_until_it_ends() {
        let work = one_place();
        let (release, released) = sync_channel::<()>(1);
        let late = work.run(&lab(), "guided_json", move || Ok(released.recv().is_ok())).await.unwrap_err();
        assert_eq!((late.kind(), late.message().contains("10s")), (ErrorKind::InvalidValue, true), "{late:?}");
        let next = work.run(&lab(), "tools", || Ok(true)).await.unwrap_err();
        assert_eq!(next.kind(), ErrorKind::QueueFull);
        release.send(()).unwrap();
        // Without a timer nothing moves the paused clock on: this waits for the thread.
        assert!(work.places.acquire().await.is_ok());
    }

    #[tokio::test]
    async fn a_panic_fails_its_own_grammar_only_and_gives_its_place_back() {
        let work = one_place();
        let panicked: Result<(), ApiError> = work.run(&lab(), "tools", || panic!("for the test")).await;
        assert_eq!(panicked.unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(work.run(&lab(), "tools", || Ok(1)).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_keeps_the_places_of_one_account_leaves_one_to_the_others() {
        let work = GrammarWork::new(CompileBounds { max_concurrent: 2, ..CompileBounds::default() });
        let (_release, released) = sync_channel::<()>(1);
        work.run(&lab(), "tools", move || Ok(released.recv().is_ok())).await.unwrap_err();
        assert_eq!(work.run(&lab(), "tools", || Ok(1)).await.unwrap_err().kind(), ErrorKind::QueueFull);
        // A paused clock would not wait for the thread.
        tokio::time::resume();
        assert_eq!(work.run(&"other".parse().unwrap(), "tools", || Ok(1)).await, Ok(1));
        assert_eq!(work.of_accounts.lock().unwrap().len(), 2);
        let _other = work.places_of(&"third".parse().unwrap());
        assert_eq!(work.of_accounts.lock().unwrap().len(), 2, "who compiles nothing is forgotten");
    }
}
