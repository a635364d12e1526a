//! A request that runs on an upstream: what it says, the reservation that pays for it, and its share of the upstream's
//! load. The counterpart of [`super::generation`], where nobody but the upstream counts tokens as they are made: whoever
//! reads the answer records what it used so far, and dropping the relay settles exactly that.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;

use passerelle_engine::Usage;

use super::breaker::Fingerprint;
use super::journal::{EntryEnd, JournalUnavailable, Told};
use super::ledger::Reservation;
use super::replica::{InFlight, Replica, UpstreamSide};
use super::upstream::{Call, Events, Failure};

#[must_use = "dropping a relay aborts and settles it"]
pub struct Relay {
    // Dropped in this order: the connection closes before the ledger and the router count the room as free.
    events: Events,
    reservation: Reservation,
    in_flight: InFlight,
    request: Fingerprint,
}

/// What a call asks of an upstream, in tokens.
#[derive(Debug, Clone, Copy)]
pub struct CallSize {
    /// Input that was counted; zero where nobody here can. What a client pays that left before the first word.
    pub counted_prompt_tokens: u32,
    /// Input and output at most.
    pub reserved_tokens: u64,
}

/// An upstream did not begin to answer. Another replica may be tried under the same reservation.
#[derive(Debug)]
pub struct NotRelayed {
    /// `None`: it is resting, and was not asked.
    pub failure: Option<Failure>,
    pub reservation: Reservation,
}

impl Relay {
    /// Sends the call and waits for the first event, which is returned beside the relay as `read` understands it. Cancel
    /// safe: who stops waiting closes the connection and pays for the prompt.
    pub async fn start<T>(
        replica: &Arc<Replica>,
        upstream: &UpstreamSide,
        (call, size): (&Call, CallSize),
        mut reservation: Reservation,
        read: impl Fn(&str) -> Result<T, Failure>,
    ) -> Result<(Self, T), Box<NotRelayed>> {
        let Some(attempt) = upstream.enter() else { return Err(Box::new(NotRelayed { failure: None, reservation })) };
        let in_flight = replica.hold(size.reserved_tokens);
        reservation.record(Usage { prompt_tokens: size.counted_prompt_tokens, ..Usage::default() });
        let mut events = upstream.door().call(call);
        let first = match next_of(&mut events).await {
            Some(said) => said.and_then(|event| read(&event)),
            None => Err(Failure::Broke("it ended without an answer".to_owned())),
        };
        let request = call.fingerprint();
        attempt.came_to(request, first.as_ref().map(|_| ()));
        match first {
            Ok(first) => Ok((Self { events, reservation, in_flight, request }, first)),
            Err(failure) => {
                reservation.record(Usage::default());
                Err(Box::new(NotRelayed { failure: Some(failure), reservation }))
            }
        }
    }

    /// The data of the next event; `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<String, Failure>> {
        let said = next_of(&mut self.events).await;
        if let Some(Err(failure)) = &said {
            self.blame(failure);
        }
        said
    }

    /// It said something that is no part of an answer.
    pub fn blame(&self, failure: &Failure) {
        if let Some(upstream) = self.replica().as_upstream() {
            upstream.failed_on(self.request, failure);
        }
    }

    /// It gave the whole answer.
    pub fn praise(&self) {
        if let Some(upstream) = self.replica().as_upstream() {
            upstream.answered();
        }
    }

    pub fn replica(&self) -> &Replica {
        self.in_flight.replica()
    }

    /// Nobody pays for it: the client got nothing.
    pub fn make_free(&mut self) {
        self.reservation.record(Usage::default());
        self.reservation.end(EntryEnd::Failed);
    }

    /// What was used so far, and may be sent once [`Relay::covers`] it; replaces what was recorded before.
    pub fn record(&mut self, used: Usage) {
        self.reservation.record(used);
    }

    /// Returns once what was recorded may be sent, because enough is written down. Cancel safe. A mark is ahead of what was
    /// sent by at most one event.
    ///
    /// What cannot be written down in time is an answer that failed here: nobody pays for it, and what the upstream
    /// told of it is kept beside.
    pub async fn covers(&mut self) -> Result<(), JournalUnavailable> {
        let covered = self.reservation.covers_recorded().await;
        if covered.is_err() {
            self.make_free();
        }
        covered
    }

    /// How it ended; a relay that is not told has been aborted.
    pub fn end(&mut self, end: EntryEnd) {
        self.reservation.end(end);
    }

    /// What the gateway that ran it says of it.
    pub fn told(&mut self, told: Told) {
        self.reservation.told(told);
    }

    /// Closes the connection and settles what was recorded.
    pub fn close(self) -> Usage {
        self.reservation.used()
    }
}

async fn next_of(events: &mut Events) -> Option<Result<String, Failure>> {
    poll_fn(|context| events.as_mut().poll_next(context)).await
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU64;

    use futures_util::{StreamExt, stream};
    use passerelle_engine::clock::{Clock, ManualClock};

    use super::*;
    use crate::gateway::account::{Account, Caller};
    use crate::gateway::breaker::BreakerBounds;
    use crate::gateway::journal::{self, EntryId, Journal, tests::Disk};
    use crate::gateway::ledger::{Ask, JournalParts, Ledger, LedgerParts};
    use crate::gateway::quota::{Bound, Limit, Period, Quota, Unit, UnixSeconds};
    use crate::gateway::replica::{ReplicaId, UpstreamParts};
    use crate::gateway::upstream::{CallRoute, UpstreamDoor};

    /// Says three things, and never that it is done.
    #[derive(Debug)]
    struct Talking;

    impl UpstreamDoor for Talking {
        fn call(&self, _: &Call) -> Events {
            Box::pin(stream::iter(["one", "two", "three"]).map(|word| Ok(word.to_owned())).chain(stream::pending()))
        }
    }

    fn replica(clock: Arc<dyn Clock>) -> Arc<Replica> {
        let bounds = BreakerBounds::default();
        let parts = UpstreamParts { name: "there".into(), door: Box::new(Talking), bounds, clock, seed: 0 };
        Arc::new(Replica::upstream(ReplicaId(0), "m", parts))
    }

    /// Of an account with a budget, whose streams wait for the disk.
    fn reservation(clock: Arc<dyn Clock>, journal: Journal) -> (Ledger, Reservation) {
        let (next_id, latest, binary, models) = (EntryId(1), UnixSeconds(0), "test".into(), BTreeMap::new());
        let journal = Some(JournalParts { journal, next_id, latest, asked_before: Vec::new(), binary, models });
        let ledger = Ledger::new(LedgerParts { journal, ..LedgerParts::without_past(clock) });
        let amount = NonZeroU64::new(1_000).unwrap();
        let budget = Limit::of(Bound::Budget { unit: Unit::Tokens, amount, period: Period::Day });
        let quota = Quota::new(vec![budget]).unwrap();
        let caller = Arc::new(Caller::at_open_door(Account::local(quota)));
        let reserved = ledger.reserve(&caller, &Ask::new("m", 5, 100)).unwrap();
        (ledger, reserved)
    }

    /// It is kept all the same what it cost over there.
    #[tokio::test(start_paused = true)]
    async fn an_answer_of_an_upstream_that_cannot_be_written_down_is_free() {
        let (clock, disk) = (Arc::new(ManualClock::default()), Disk::default());
        let replica = replica(clock.clone());
        let (_thread, journal) = journal::tests::start(&disk);
        let (ledger, reserved) = reservation(clock, journal.clone());
        *disk.is_full.lock().unwrap() = true;
        let call = Call { route: CallRoute::Chat, body: "{}".into(), on_behalf: None };
        let size = CallSize { counted_prompt_tokens: 5, reserved_tokens: 105 };
        let upstream = replica.as_upstream().unwrap();
        let started = Relay::start(&replica, upstream, (&call, size), reserved, |said| Ok(said.to_owned())).await;
        let (mut relay, first) = started.unwrap();
        assert_eq!(first, "one");
        relay.record(Usage { prompt_tokens: 5, generated_tokens: 40, ..Usage::default() });
        relay.told(Told { billed_micros: 77, site: "there".into(), ..Told::default() });
        assert_eq!(relay.covers().await, Err(journal::JournalUnavailable));
        assert_eq!(relay.close(), Usage::default());
        *disk.is_full.lock().unwrap() = false;
        while journal.state().backlog > 0 {
            tokio::task::yield_now().await;
        }
        let [settled] = <[_; 1]>::try_from(disk.settlements()).unwrap();
        assert_eq!((settled.billed_micros, settled.used, settled.end), (0, Usage::default(), EntryEnd::Failed));
        assert_eq!(settled.told.map(|told| told.billed_micros), Some(77));
        assert_eq!(ledger.totals().generated_tokens, 0);
    }
}
