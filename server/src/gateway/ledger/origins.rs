//! Requests that another gateway makes under a reservation of its own, and makes again where an answer was lost: what the
//! first one used is not billed once more.
//!
//! Kept in this process, for the latest reservations.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use passerelle_engine::Usage;

use crate::gateway::account::AccountPath;

const MAX_ID_BYTES: usize = 128;

/// A reservation of another gateway, which has the account here that pays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    account: AccountPath,
    id: Arc<str>,
    /// Which prompt of the request.
    part: u32,
}

#[derive(Debug)]
pub(super) struct Origins {
    /// Reservations that are remembered.
    most: NonZeroUsize,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The most that any request of it has used.
    billed: HashMap<Origin, Usage>,
    /// The oldest first.
    order: VecDeque<Origin>,
}

impl Origin {
    /// `None` for an id that is none: it has 1 to 128 visible characters.
    pub fn new(account: AccountPath, id: &str) -> Option<Self> {
        let fits = (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self { account, id: id.into(), part: 0 })
    }

    /// Of one prompt of a list.
    #[must_use]
    pub fn part(&self, part: u32) -> Self {
        Self { part, ..self.clone() }
    }
}

impl Origins {
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self { most, known: Mutex::default() }
    }

    /// What of `used` was not billed yet. From now on it is.
    pub(super) fn beyond(&self, origin: &Origin, used: Usage) -> Usage {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.billed.get(origin).copied().unwrap_or_else(|| known.remember(origin, self.most));
        let most = Usage {
            prompt_tokens: before.prompt_tokens.max(used.prompt_tokens),
            cached_tokens: before.cached_tokens.max(used.cached_tokens),
            generated_tokens: before.generated_tokens.max(used.generated_tokens),
            measured_ns: 0,
        };
        known.billed.insert(origin.clone(), most);
        Usage {
            prompt_tokens: used.prompt_tokens.saturating_sub(before.prompt_tokens),
            cached_tokens: used.cached_tokens.saturating_sub(before.cached_tokens),
            generated_tokens: used.generated_tokens.saturating_sub(before.generated_tokens),
            measured_ns: used.measured_ns,
        }
    }
}

impl Known {
    fn remember(&mut self, origin: &Origin, most: NonZeroUsize) -> Usage {
        if self.order.len() == most.get()
            && let Some(oldest) = self.order.pop_front()
        {
            self.billed.remove(&oldest);
        }
        self.order.push_back(origin.clone());
        Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(prompt_tokens: u32, generated_tokens: u32) -> Usage {
        Usage { prompt_tokens, generated_tokens, ..Usage::default() }
    }

    fn origins(most: usize) -> Origins {
        Origins::new(NonZeroUsize::new(most).unwrap())
    }

    fn origin(account: &str, id: &str) -> Origin {
        Origin::new(account.parse().unwrap(), id).unwrap()
    }

    #[test]
    fn a_retry_is_billed_for_what_it_used_beyond_the_first_try_in_whatever_order_they_end() {
        let origins = origins(8);
        assert_eq!(origins.beyond(&origin("a", "r"), used(10, 4)), used(10, 4));
        assert_eq!(origins.beyond(&origin("a", "r"), used(10, 9)), used(0, 5));
        assert_eq!(origins.beyond(&origin("a", "r"), used(10, 3)), used(0, 0));
        assert_eq!(origins.beyond(&origin("b", "r"), used(10, 3)), used(10, 3), "another account's id is another id");
        assert_eq!(origins.beyond(&origin("a", "r").part(1), used(7, 1)), used(7, 1));
    }

    #[test]
    fn the_oldest_are_forgotten_and_no_id_is_endless() {
        let origins = origins(1_000);
        (0..=1_000).for_each(|id| _ = origins.beyond(&origin("a", &id.to_string()), used(1, 1)));
        assert_eq!(origins.known.lock().unwrap().billed.len(), 1_000);
        assert_eq!(origins.beyond(&origin("a", "0"), used(1, 1)), used(1, 1));
        for odd in ["", "a b", "é", &"x".repeat(129)] {
            assert_eq!(Origin::new(AccountPath::root(), odd), None, "{odd}");
        }
    }
}
