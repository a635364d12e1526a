//! Requests that another gateway makes under a reservation of its own, and makes again where an answer was lost: what the
//! first one used is not billed once more.
//!
//! Kept for the latest reservations, and over restarts as far as their entries were settled.

use std::collections::{HashMap, VecDeque};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};

use passerelle_engine::Usage;

use super::{Books, Ledger};
use crate::gateway::account::AccountPath;
use crate::gateway::attribution::Asker;
use crate::gateway::journal::{AskedBefore, Counts, Opening};

const MAX_ID_BYTES: usize = 128;

/// A reservation of another gateway, which has the account here that pays.
#[derive(Debug, Clone)]
pub struct PeerReservation {
    key: Key,
    /// Over there.
    for_account: Option<AccountPath>,
}

/// What makes two requests one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    account: AccountPath,
    id: Arc<str>,
    /// Which prompt of the request.
    part: u32,
}

#[derive(Debug)]
pub(in crate::gateway) struct Origins {
    /// Reservations that are remembered.
    most: NonZeroUsize,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    bills: HashMap<Key, Bill>,
    /// The oldest first.
    order: VecDeque<Key>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bill {
    /// The most that any request of it has used.
    most: Usage,
    micros: u64,
}

impl PeerReservation {
    /// `None` for an id that is none: it has 1 to 128 visible characters. `for_account`: over there, as far as it is told.
    pub fn new(account: AccountPath, id: &str, for_account: Option<AccountPath>) -> Option<Self> {
        let fits = (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self { key: Key { account, id: id.into(), part: 0 }, for_account })
    }

    /// Who asked for an entry.
    pub fn of(opening: &Opening) -> Option<Self> {
        let Asker { reservation, part, account } = opening.attribution.asker.clone()?;
        Some(Self { key: Key { account: opening.account.clone(), id: reservation, part }, for_account: account })
    }

    /// Of one prompt of a list.
    #[must_use]
    pub fn part(&self, part: u32) -> Self {
        Self { key: Key { part, ..self.key.clone() }, for_account: self.for_account.clone() }
    }

    pub fn asker(&self) -> Asker {
        Asker { reservation: Arc::clone(&self.key.id), part: self.key.part, account: self.for_account.clone() }
    }
}

impl Origins {
    /// `before`: what is billed already, the oldest first.
    pub(in crate::gateway) fn new(most: NonZeroUsize, before: Vec<AskedBefore>) -> Self {
        let mut known = Known::default();
        for AskedBefore { account, reservation: id, part, used, billed_micros } in before {
            let key = Key { account, id, part };
            let bill = known.bills.get(&key).copied().unwrap_or_else(|| known.remember(&key, most));
            known.bills.insert(key, bill.with(used, billed_micros));
        }
        Self { most, known: Mutex::new(known) }
    }

    /// What of `used` was not billed yet, and whether it is the first of its reservation. From now on it is billed.
    pub(in crate::gateway) fn bill(
        &self,
        origin: &PeerReservation,
        used: Usage,
        price: impl Fn(Usage) -> u64,
    ) -> (Usage, Counts) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.bills.get(&origin.key).copied();
        let counts = if before.is_some() { Counts::None } else { Counts::One };
        let before = before.unwrap_or_else(|| known.remember(&origin.key, self.most));
        let more = before.beyond(used);
        known.bills.insert(origin.key.clone(), before.with(more, price(more)));
        (more, counts)
    }

    /// What the reservation is billed in all if a request of it ends with `used`, or ended so.
    pub(super) fn in_all(&self, origin: &PeerReservation, used: Usage, price: impl Fn(Usage) -> u64) -> u64 {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.bills.get(&origin.key).copied().unwrap_or_default();
        before.micros.saturating_add(price(before.beyond(used)))
    }
}

impl Ledger {
    /// What the other gateway's reservation is billed in all, earlier requests of it and this one's use together, in
    /// microseconds.
    pub fn billed_in_all(&self, origin: &PeerReservation, model: &str, answers: NonZeroU32, used: Usage) -> u64 {
        self.books.origins.in_all(origin, used, self.books.pricing(Some(model), answers))
    }
}

impl Books {
    pub(super) fn pricing(&self, model: Option<&str>, answers: NonZeroU32) -> impl Fn(Usage) -> u64 {
        move |used| self.parts.tariff.cost_micros(model, used, answers)
    }
}

impl Bill {
    fn beyond(&self, used: Usage) -> Usage {
        let prompt_tokens = used.prompt_tokens.saturating_sub(self.most.prompt_tokens);
        Usage {
            prompt_tokens,
            // Of the prompt that is billed now: what a cache holds by now was billed as it was then.
            cached_tokens: used.cached_tokens.saturating_sub(self.most.cached_tokens).min(prompt_tokens),
            generated_tokens: used.generated_tokens.saturating_sub(self.most.generated_tokens),
            measured_ns: used.measured_ns,
        }
    }

    /// `more`: beyond it.
    fn with(&self, more: Usage, micros: u64) -> Self {
        let most = Usage {
            prompt_tokens: self.most.prompt_tokens.saturating_add(more.prompt_tokens),
            cached_tokens: self.most.cached_tokens.saturating_add(more.cached_tokens),
            generated_tokens: self.most.generated_tokens.saturating_add(more.generated_tokens),
            measured_ns: 0,
        };
        Self { most, micros: self.micros.saturating_add(micros) }
    }
}

impl Known {
    fn remember(&mut self, key: &Key, most: NonZeroUsize) -> Bill {
        if self.order.len() == most.get()
            && let Some(oldest) = self.order.pop_front()
        {
            self.bills.remove(&oldest);
        }
        self.order.push_back(key.clone());
        Bill::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(prompt_tokens: u32, generated_tokens: u32) -> Usage {
        Usage { prompt_tokens, generated_tokens, ..Usage::default() }
    }

    fn origins(most: usize) -> Origins {
        Origins::new(NonZeroUsize::new(most).unwrap(), Vec::new())
    }

    fn origin(account: &str, id: &str) -> PeerReservation {
        PeerReservation::new(account.parse().unwrap(), id, None).unwrap()
    }

    fn bill(origins: &Origins, origin: &PeerReservation, used: Usage) -> Usage {
        origins.bill(origin, used, price).0
    }

    /// Ten a token.
    fn price(used: Usage) -> u64 {
        10 * u64::from(used.prompt_tokens + used.generated_tokens)
    }

    #[test]
    fn a_retry_is_billed_for_what_it_used_beyond_the_first_try_in_whatever_order_they_end() {
        let origins = origins(8);
        assert_eq!(bill(&origins, &origin("a", "r"), used(10, 4)), used(10, 4));
        assert_eq!(bill(&origins, &origin("a", "r"), used(10, 9)), used(0, 5));
        assert_eq!(bill(&origins, &origin("a", "r"), used(10, 3)), used(0, 0));
        assert_eq!(bill(&origins, &origin("b", "r"), used(10, 3)), used(10, 3), "another account's id is another id");
        assert_eq!(bill(&origins, &origin("a", "r").part(1), used(7, 1)), used(7, 1));
    }

    #[test]
    fn the_oldest_are_forgotten_and_no_id_is_endless() {
        let origins = origins(1_000);
        (0..=1_000).for_each(|id| _ = bill(&origins, &origin("a", &id.to_string()), used(1, 1)));
        assert_eq!(origins.known.lock().unwrap().bills.len(), 1_000);
        assert_eq!(bill(&origins, &origin("a", "0"), used(1, 1)), used(1, 1));
        for odd in ["", "a b", "é", &"x".repeat(129)] {
            assert!(PeerReservation::new(AccountPath::root(), odd, None).is_none(), "{odd}");
        }
    }

    #[test]
    fn whoever_asks_again_counts_once_and_is_told_what_the_first_was_billed() {
        let (origins, origin) = (origins(8), origin("a", "r"));
        let in_all = |used| origins.in_all(&origin, used, price);
        assert_eq!(in_all(used(10, 4)), 140, "of the first, before it ends");
        assert_eq!(origins.bill(&origin, used(10, 4), price), (used(10, 4), Counts::One));
        assert_eq!((in_all(used(10, 4)), in_all(used(10, 1))), (140, 140));
        let cached = Usage { cached_tokens: 9, ..used(10, 4) };
        assert_eq!(in_all(cached), 140, "what is found in the cache now was not then");
        assert_eq!(origins.bill(&origin, cached, price), (used(0, 0), Counts::None));
        assert_eq!(origins.bill(&origin, used(10, 9), price), (used(0, 5), Counts::None));
        assert_eq!(in_all(used(10, 4)), 190);
    }

    #[test]
    fn what_was_billed_before_a_restart_is_not_billed_again_after_it() {
        let asked = |(id, part): (&str, u32), used: Usage| {
            let (account, reservation) = ("a".parse().unwrap(), id.into());
            AskedBefore { account, reservation, part, used, billed_micros: price(used) }
        };
        let before = vec![asked(("r", 0), used(10, 4)), asked(("r", 1), used(7, 1)), asked(("r", 0), used(0, 5))];
        let origins = Origins::new(NonZeroUsize::new(2).unwrap(), before);
        assert_eq!(origins.in_all(&origin("a", "r"), used(10, 9), price), 190);
        assert_eq!(origins.bill(&origin("a", "r"), used(10, 11), price), (used(0, 2), Counts::None));
        assert_eq!(origins.bill(&origin("a", "r").part(1), used(7, 1), price), (used(0, 0), Counts::None));
        assert_eq!(origins.bill(&origin("a", "s"), used(1, 1), price), (used(1, 1), Counts::One));
        assert_eq!(
            origins.bill(&origin("a", "r"), used(1, 1), price),
            (used(1, 1), Counts::One),
            "the oldest is forgotten"
        );
    }
}
