//! Who of those that wait runs next. Pure: it sees shares, costs and numbers, never a sequence or a clock.
//!
//! 1. The better class. A class that better ones have gone before for as long as `patience`, out of the queue or while their
//!    prompts ran, gets a turn out of order, so none starves. Of several, the one that has waited longest.
//! 2. In a class, sequences that were preempted, oldest first.
//! 3. Then the shares, by deficit: a share may start requests while its credit is above zero, and pays with its credit,
//!    over its weight, for every token that its sequences run. When no share that waits has credit left, a round gives
//!    each of them a quantum (deficit round robin, Shreedhar and Varghese 1996).
//! 4. Among the shares with credit, the request with the longest cached prefix (as in DLPM, arXiv 2501.14312), then the
//!    share with the most credit, then age. While it waits, no request is passed over more than [`MAX_PASSED_OVER`] times by
//!    younger ones of its share, whoever among them is new, and whoever was parked and comes again; one that was parked
//!    itself, and so has run, is counted anew. One that is set aside, until another has computed what it begins with, does
//!    not wait here meanwhile, and comes back with its count. The patience of its class runs on while it is away, and ends
//!    with it if it leaves.
//!
//! # How far two shares can drift apart
//!
//! Let `Q` be the quantum, and `U` the most that the sequences of one share can cost that run at one time: as many as may
//! run, each as long as the context allows. A token is paid for once, also if it is computed again.
//!
//! *A credit is at most `Q`.* Rounds are given only while no waiting share has credit above zero, and no more of them
//! than it takes to change that.
//!
//! *A credit is at least `-U`.* When a share last started a request its credit was above zero, and what it pays for from
//! then on are tokens of the sequences that it had running in that moment: none of its sequences stood preempted, for
//! those go first, also one that ran above its class; and one that was parked starts again like a new request. A request
//! of several choices starts with a place for each of them.
//!
//! Take two shares of one class that both wait from `t1` to `t2`. Both get the same rounds, so what each is served is
//! those rounds and the fall of its credit, and the rounds cancel out of the difference:
//!
//! ```text
//! | served_a - served_b | = | (credit_a(t1) - credit_a(t2)) - (credit_b(t1) - credit_b(t2)) | <= 2 (Q + U)
//! ```
//!
//! where `served` is cost over weight. [`WaitingQueue::widest_gap`] is the distance between the credits that wait, at most
//! `Q + U`; the difference over any stretch is at most the sum of that distance at its two ends.
//!
//! # How long a request can wait
//!
//! Let a place come free, and be taken, at least every `F`: with `n` places and sequences of at most `L` tokens, `n L` steps,
//! for each step computes a token of one that runs (where batch waits for its turn, of a better one), and as many more as it
//! takes to compute again what blocks were taken from.
//!
//! *A class has a turn within `patience + 3 F`.* After `patience` it is overdue. One that was chosen before it may still wait
//! for its place, up to `F`, and better ones wait with it; then the classes that are overdue take turns, since whoever had
//! one is the last of them, and there are two that can be: `3 F` for the third place. The best is never overdue: it has a
//! place whenever none of the others is, and they are so again only after something better went before them.
//!
//! *A request of the only share of its class starts within `(MAX_PASSED_OVER + 1) (patience + 3 F)`*, once none of its class
//! that is older waits, or was preempted: so many turns may go to younger ones. Of `m` shares each has the same rounds, and
//! what another may start in one is a quantum's worth.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::cost::CostNs;
use crate::request::{Class, ShareWeight};
use crate::sequence::{SequenceId, Share};

/// Times that a request may see a younger one of its share go first for a longer cached prefix.
const MAX_PASSED_OVER: u32 = 8;
/// Requests of one share whose prefixes are looked up for one choice.
const MAX_CANDIDATES: usize = 8;

#[derive(Debug)]
pub(crate) struct WaitingQueue<T> {
    quantum: i64,
    patience: Duration,
    preempted: BTreeMap<SequenceId, (Share, T)>,
    accounts: BTreeMap<Share, Account<T>>,
    /// When a better class first had a turn before each class that waits, since that had its own.
    passed_over_since: BTreeMap<Class, Duration>,
    /// Those that were set aside, by class.
    num_aside: [usize; Class::ALL.len()],
    /// Chosen and not taken yet: it keeps its turn until it fits, unless a better class comes or its credit is spent.
    head: Option<Head>,
}

#[derive(Debug)]
struct Account<T> {
    /// Nanoseconds of cost over weight; below zero it is a debt.
    credit: i64,
    /// Sequences of this share that wait, run or are parked. Without any, only a debt is remembered.
    num_live: usize,
    /// The oldest first.
    waiting: VecDeque<Waiting<T>>,
}

#[derive(Debug)]
pub(crate) struct Waiting<T> {
    id: SequenceId,
    pub(crate) item: T,
    /// How often a younger one went first.
    passed_over: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    class: Class,
    at: Place,
    /// Its class has waited too long.
    is_out_of_order: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Preempted(SequenceId),
    Waiting(Share, SequenceId),
}

/// What was taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken<T> {
    pub(crate) item: T,
    /// In which it runs: above its own, if its class had waited too long, or it would give way again at once.
    pub(crate) class: Class,
}

impl<T> WaitingQueue<T> {
    pub(crate) fn new(quantum: CostNs, patience: Duration) -> Self {
        Self {
            quantum: (quantum as i64).max(1),
            patience,
            preempted: BTreeMap::new(),
            accounts: BTreeMap::new(),
            passed_over_since: BTreeMap::new(),
            num_aside: [0; Class::ALL.len()],
            head: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.preempted.is_empty() && self.accounts.values().all(|account| account.waiting.is_empty())
    }

    /// All that wait here.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let waiting = self.accounts.values().flat_map(|account| account.waiting.iter().map(|waiting| &waiting.item));
        waiting.chain(self.preempted.values().map(|(_, item)| item))
    }

    /// One more sequence of this share lives.
    pub(crate) fn enter(&mut self, share: Share) {
        self.accounts.entry(share).or_insert_with(Account::new).num_live += 1;
    }

    /// A sequence of this share has ended.
    pub(crate) fn leave(&mut self, share: Share) {
        if let Some(account) = self.accounts.get_mut(&share) {
            account.num_live -= 1;
        }
        // When nobody is left to be fair to, debts are forgiven; so there are never more than accounts of one busy time.
        let all_left = self.accounts.values().all(|account| account.num_live == 0);
        self.accounts.retain(|_, account| account.num_live > 0 || (account.credit < 0 && !all_left));
    }

    /// Whoever ran before stands among its share's others by its age, too.
    pub(crate) fn push(&mut self, share: Share, id: SequenceId, item: T) {
        self.insert(share, Waiting { id, item, passed_over: 0 });
    }

    /// Who was set aside waits here again, as long passed over as it was.
    pub(crate) fn put_back(&mut self, share: Share, aside: Waiting<T>) {
        self.num_aside[share.class as usize] -= 1;
        self.insert(share, aside);
    }

    /// Who was set aside does not come back. Its share must still [`WaitingQueue::leave`].
    pub(crate) fn forget_aside(&mut self, share: Share) {
        self.num_aside[share.class as usize] -= 1;
        self.end_patience();
    }

    pub(crate) fn push_preempted(&mut self, share: Share, id: SequenceId, item: T) {
        self.preempted.insert(id, (share, item));
        self.head = None;
    }

    /// Who runs next. `cached_tokens` says how much of an item's prefix is cached.
    pub(crate) fn peek(&mut self, now: Duration, cached_tokens: impl Fn(&mut T) -> usize) -> Option<&mut T> {
        if !self.head.is_some_and(|head| self.may_start(head)) {
            self.head = self.choose(now, cached_tokens);
        }
        let Head { class, at, .. } = self.head?;
        let is_overdue = self.is_overdue(class, now);
        if let Some(head) = &mut self.head {
            head.is_out_of_order |= is_overdue;
        }
        match at {
            Place::Preempted(id) => self.preempted.get_mut(&id).map(|(_, item)| item),
            Place::Waiting(share, id) => {
                let waiting = &mut self.accounts.get_mut(&share)?.waiting;
                waiting.iter_mut().find(|other| other.id == id).map(|found| &mut found.item)
            }
        }
    }

    /// In which class whoever [`WaitingQueue::peek`] has shown will run.
    pub(crate) fn head_class(&self) -> Option<Class> {
        self.head.map(Head::runs_in)
    }

    /// Takes what [`WaitingQueue::peek`] has shown.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Taken<T>> {
        let head = self.head.take()?;
        self.passed_over_since.remove(&head.class);
        self.note_turn(head.class, now);
        let item = match head.at {
            Place::Preempted(id) => self.preempted.remove(&id)?.1,
            Place::Waiting(share, id) => self.accounts.get_mut(&share)?.take(id)?,
        };
        Some(Taken { item, class: head.runs_in() })
    }

    /// Takes what [`WaitingQueue::peek`] has shown, unless it was preempted, to wait elsewhere: nobody has had a turn, and nobody
    /// was passed over. While it is away its share gets no rounds for it.
    pub(crate) fn set_aside(&mut self) -> Option<Waiting<T>> {
        let Place::Waiting(share, id) = self.head?.at else { return None };
        self.head = None;
        let waiting = &mut self.accounts.get_mut(&share)?.waiting;
        let index = waiting.iter().position(|waiting| waiting.id == id)?;
        let aside = waiting.remove(index);
        self.num_aside[share.class as usize] += usize::from(aside.is_some());
        aside
    }

    /// Somebody of this class went on before the worse ones that wait.
    pub(crate) fn note_turn(&mut self, class: Class, now: Duration) {
        for worse in Class::ALL.into_iter().filter(|&other| other > class) {
            if self.waits(worse) {
                self.passed_over_since.entry(worse).or_insert(now);
            }
        }
    }

    /// `cost` was spent on a sequence of this share.
    pub(crate) fn charge(&mut self, share: Share, weight: ShareWeight, cost: CostNs) {
        if let Some(account) = self.accounts.get_mut(&share) {
            account.credit -= cost.div_ceil(weight.0.get().into()) as i64;
        }
    }

    /// Between the largest and the smallest credit of two shares of one class that wait.
    pub(crate) fn widest_gap(&self) -> CostNs {
        let gap_of = |class| {
            let credits = || self.backlogged(class).map(|(_, account)| account.credit);
            credits().max().unwrap_or_default() - credits().min().unwrap_or_default()
        };
        Class::ALL.map(gap_of).into_iter().max().unwrap_or_default() as CostNs
    }

    /// Takes out every waiting item that `unwanted` names. Their shares must still [`WaitingQueue::leave`].
    pub(crate) fn extract(&mut self, unwanted: impl Fn(&T) -> bool) -> Vec<T> {
        let preempted = take_out(&mut self.preempted, |(_, item)| unwanted(item));
        let mut taken: Vec<_> = preempted.into_iter().map(|(_, item)| item).collect();
        for account in self.accounts.values_mut() {
            if account.waiting.iter().any(|waiting| unwanted(&waiting.item)) {
                let (out, kept): (VecDeque<_>, _) =
                    account.waiting.drain(..).partition(|waiting| unwanted(&waiting.item));
                account.waiting = kept;
                taken.extend(out.into_iter().map(|waiting| waiting.item));
            }
        }
        if !taken.is_empty() {
            self.head = None;
            self.end_patience();
        }
        taken
    }

    /// Of the classes that nobody waits in any more, here or aside: whoever waits next begins to.
    fn end_patience(&mut self) {
        for class in Class::ALL {
            if !self.waits(class) && self.num_aside[class as usize] == 0 {
                self.passed_over_since.remove(&class);
            }
        }
    }

    fn insert(&mut self, share: Share, newcomer: Waiting<T>) {
        let waiting = &mut self.account_mut(share).waiting;
        let younger = waiting.partition_point(|other| other.id < newcomer.id);
        waiting.insert(younger, newcomer);
        self.reconsider(share.class);
    }

    fn account_mut(&mut self, share: Share) -> &mut Account<T> {
        self.accounts.get_mut(&share).expect("every sequence enters before it waits")
    }

    /// Somebody of this class came: whoever was chosen before keeps its turn only before equals.
    fn reconsider(&mut self, class: Class) {
        if self.head.is_some_and(|head| class < head.class && !head.is_out_of_order) {
            self.head = None;
        }
    }

    fn backlogged(&self, class: Class) -> impl Iterator<Item = (&Share, &Account<T>)> {
        self.accounts.iter().filter(move |(share, account)| share.class == class && !account.waiting.is_empty())
    }

    fn choose(&mut self, now: Duration, cached_tokens: impl Fn(&mut T) -> usize) -> Option<Head> {
        // Not the best: it could be overdue again whenever a place comes free, and a worse one would wait for ever.
        let overdue = Class::ALL.into_iter().filter(|&class| self.waits(class) && self.is_overdue(class, now));
        let class = overdue.min_by_key(|class| self.passed_over_since.get(class)).or(self.best_class())?;
        let preempted = self.preempted.keys().find(|id| id.class == class).map(|&id| Place::Preempted(id));
        let at = match preempted {
            Some(place) => place,
            None => self.choose_share(class, cached_tokens)?,
        };
        Some(Head { class, at, is_out_of_order: false })
    }

    /// Its share may have spent the credit that it was chosen with.
    fn may_start(&self, head: Head) -> bool {
        match head.at {
            Place::Preempted(_) => true,
            Place::Waiting(share, _) => self.accounts.get(&share).is_some_and(|account| account.credit > 0),
        }
    }

    /// Of those that wait.
    pub(crate) fn best_class(&self) -> Option<Class> {
        Class::ALL.into_iter().find(|&class| self.waits(class))
    }

    fn waits(&self, class: Class) -> bool {
        self.preempted.keys().any(|id| id.class == class) || self.backlogged(class).next().is_some()
    }

    /// Better ones have gone before this class for as long as it has patience.
    fn is_overdue(&self, class: Class, now: Duration) -> bool {
        let since = self.passed_over_since.get(&class);
        since.is_some_and(|&since| now.saturating_sub(since) >= self.patience) && !self.is_ahead(class)
    }

    /// A sequence of this class that had a turn out of order was preempted since: it stands with the better ones and goes
    /// first.
    fn is_ahead(&self, class: Class) -> bool {
        self.preempted.iter().any(|(id, (share, _))| share.class == class && id.class < class)
    }

    /// Among the shares with credit.
    fn choose_share(&mut self, class: Class, cached_tokens: impl Fn(&mut T) -> usize) -> Option<Place> {
        self.give_rounds(class);
        let eligible = self.accounts.iter_mut().filter(|(share, account)| share.class == class && account.credit > 0);
        let mut best = None;
        for (&share, account) in eligible {
            let credit = account.credit;
            for Waiting { id, item, .. } in account.candidates() {
                let rank = (cached_tokens(item), credit, std::cmp::Reverse(*id));
                if best.is_none_or(|(found, _)| rank > found) {
                    best = Some((rank, Place::Waiting(share, *id)));
                }
            }
        }
        best.map(|(_, place)| place)
    }

    /// As few as it takes for a share that waits to have credit. A share with nothing waiting pays its debt in them, and
    /// saves nothing.
    fn give_rounds(&mut self, class: Class) {
        let Some(richest) = self.backlogged(class).map(|(_, account)| account.credit).max() else { return };
        if richest > 0 {
            return;
        }
        let given = (-richest / self.quantum + 1) * self.quantum;
        for (_, account) in self.accounts.iter_mut().filter(|(share, _)| share.class == class) {
            let most = if account.waiting.is_empty() { account.credit.max(0) } else { self.quantum };
            account.credit = (account.credit + given).min(most);
        }
        self.accounts.retain(|_, account| account.num_live > 0 || account.credit < 0);
    }
}

impl Head {
    fn runs_in(self) -> Class {
        if self.is_out_of_order { self.class.raised() } else { self.class }
    }
}

impl<T> Account<T> {
    fn new() -> Self {
        Self { credit: 0, num_live: 0, waiting: VecDeque::new() }
    }

    /// Those that a cached prefix may bring forward: nobody behind one that was passed over often enough.
    fn candidates(&mut self) -> impl Iterator<Item = &mut Waiting<T>> {
        let last = self.waiting.iter().take(MAX_CANDIDATES).position(|waiting| waiting.passed_over >= MAX_PASSED_OVER);
        self.waiting.iter_mut().take(last.map_or(MAX_CANDIDATES, |last| last + 1))
    }

    fn take(&mut self, id: SequenceId) -> Option<T> {
        let index = self.waiting.iter().position(|waiting| waiting.id == id)?;
        self.waiting.iter_mut().take(index).for_each(|older| older.passed_over += 1);
        self.waiting.remove(index).map(|waiting| waiting.item)
    }
}

/// Takes every value out of `map` that `unwanted` names, in order.
pub(crate) fn take_out<K: Ord + Copy, V>(map: &mut BTreeMap<K, V>, unwanted: impl Fn(&V) -> bool) -> Vec<V> {
    let keys: Vec<K> = map.iter().filter(|(_, value)| unwanted(value)).map(|(&key, _)| key).collect();
    keys.iter().filter_map(|key| map.remove(key)).collect()
}

#[cfg(test)]
mod tests;
