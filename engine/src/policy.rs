//! The order of the waiting queue. Pure: it sees keys and numbers, never a sequence or a clock.
//!
//! Sequences that were preempted come first, oldest first. Then the share key that was served the fewest tokens takes
//! its oldest request; equal keys go by arrival. A key that returns after an absence starts level with the key served
//! last (start-time fair queueing, Goyal, Vin and Cheng 1996) and with the waiting key served least, so that neither
//! silence nor a new name earns credit against whoever waits already.

use std::collections::{BTreeMap, VecDeque};

use crate::request::ShareKey;
use crate::sequence::SequenceId;

#[derive(Debug)]
pub(crate) struct WaitingQueue<T> {
    preempted: BTreeMap<SequenceId, T>,
    shares: BTreeMap<ShareKey, Share<T>>,
    /// Tokens served to the key whose request was taken last, when it was taken.
    virtual_time: u64,
}

#[derive(Debug)]
struct Share<T> {
    served_tokens: u64,
    /// Requests of this key that wait or run. The share is forgotten with the last of them.
    num_live: usize,
    waiting: VecDeque<(SequenceId, T)>,
}

impl<T> WaitingQueue<T> {
    pub(crate) fn new() -> Self {
        Self { preempted: BTreeMap::new(), shares: BTreeMap::new(), virtual_time: 0 }
    }

    pub(crate) fn num_preempted(&self) -> usize {
        self.preempted.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.preempted.is_empty() && self.shares.values().all(|share| share.waiting.is_empty())
    }

    pub(crate) fn push(&mut self, key: ShareKey, id: SequenceId, item: T) {
        let served_tokens = self.start_of_arrivals();
        let share =
            self.shares.entry(key).or_insert_with(|| Share { served_tokens, num_live: 0, waiting: VecDeque::new() });
        // A backlogged key keeps its count; one that only runs old requests must not save up.
        if share.waiting.is_empty() {
            share.served_tokens = share.served_tokens.max(served_tokens);
        }
        share.num_live += 1;
        share.waiting.push_back((id, item));
    }

    pub(crate) fn push_preempted(&mut self, id: SequenceId, item: T) {
        self.preempted.insert(id, item);
    }

    /// Who runs next.
    pub(crate) fn peek(&mut self) -> Option<&mut T> {
        if !self.preempted.is_empty() {
            return self.preempted.first_entry().map(|entry| entry.into_mut());
        }
        let key = self.next_key()?;
        let share = self.shares.get_mut(&key)?;
        share.waiting.front_mut().map(|(_, item)| item)
    }

    /// Takes what [`WaitingQueue::peek`] shows.
    pub(crate) fn pop(&mut self) -> Option<T> {
        if let Some((_, item)) = self.preempted.pop_first() {
            return Some(item);
        }
        let key = self.next_key()?;
        let share = self.shares.get_mut(&key)?;
        self.virtual_time = self.virtual_time.max(share.served_tokens);
        share.waiting.pop_front().map(|(_, item)| item)
    }

    /// `tokens` were spent on a request of this key.
    pub(crate) fn charge(&mut self, key: ShareKey, tokens: usize) {
        if let Some(share) = self.shares.get_mut(&key) {
            share.served_tokens += tokens as u64;
        }
    }

    /// A request of this key has ended.
    pub(crate) fn leave(&mut self, key: ShareKey) {
        let Some(share) = self.shares.get_mut(&key) else { return };
        share.num_live -= 1;
        if share.num_live == 0 {
            self.shares.remove(&key);
        }
    }

    /// Takes out every waiting item that `unwanted` names. Their keys must still [`WaitingQueue::leave`].
    pub(crate) fn extract(&mut self, unwanted: impl Fn(&T) -> bool) -> Vec<T> {
        let ids: Vec<_> = self.preempted.iter().filter(|(_, item)| unwanted(item)).map(|(&id, _)| id).collect();
        let mut taken: Vec<_> = ids.iter().filter_map(|id| self.preempted.remove(id)).collect();
        for share in self.shares.values_mut() {
            if share.waiting.iter().any(|(_, item)| unwanted(item)) {
                let (out, kept): (VecDeque<_>, _) = share.waiting.drain(..).partition(|(_, item)| unwanted(item));
                share.waiting = kept;
                taken.extend(out.into_iter().map(|(_, item)| item));
            }
        }
        taken
    }

    /// Where a key starts that has nothing waiting.
    fn start_of_arrivals(&self) -> u64 {
        let backlogged = self.shares.values().filter(|share| !share.waiting.is_empty());
        let least_served = backlogged.map(|share| share.served_tokens).min();
        least_served.map_or(self.virtual_time, |served| served.max(self.virtual_time))
    }

    fn next_key(&self) -> Option<ShareKey> {
        let backlogged = self.shares.iter().filter_map(|(key, share)| {
            let (id, _) = share.waiting.front()?;
            Some((share.served_tokens, *id, *key))
        });
        backlogged.min().map(|(_, _, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShareKey = ShareKey(1);
    const B: ShareKey = ShareKey(2);

    fn queue(items: &[(ShareKey, u64)]) -> WaitingQueue<u64> {
        let mut queue = WaitingQueue::new();
        items.iter().for_each(|&(key, id)| queue.push(key, SequenceId(id), id));
        queue
    }

    fn order(mut queue: WaitingQueue<u64>) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn one_key_is_served_by_arrival() {
        assert_eq!(order(queue(&[(A, 0), (A, 1), (A, 2)])), [0, 1, 2]);
    }

    #[test]
    fn the_key_served_least_goes_first_however_long_the_backlog_of_the_other() {
        let mut queue = queue(&[(A, 0), (A, 1), (A, 2), (B, 3), (B, 4)]);
        let mut order = Vec::new();
        for tokens in [100, 30, 30, 50, 50] {
            let id = *queue.peek().unwrap();
            assert_eq!(queue.pop(), Some(id));
            queue.charge(if id < 3 { A } else { B }, tokens);
            order.push(id);
        }
        assert_eq!(order, [0, 3, 4, 1, 2]);
        assert!(queue.is_empty());
    }

    #[test]
    fn silence_earns_no_credit() {
        let mut queue = queue(&[(A, 0), (A, 1), (A, 2)]);
        queue.pop();
        queue.charge(A, 1000);
        queue.pop();
        queue.push(B, SequenceId(3), 3);
        queue.charge(B, 1);
        assert_eq!(queue.pop(), Some(2));
    }

    #[test]
    fn a_backlogged_key_runs_however_many_keys_come_and_go() {
        let mut queue = queue(&[(A, 0), (A, 1)]);
        assert_eq!(queue.pop(), Some(0));
        queue.charge(A, 1000);
        // Single requests of ever new keys, each there before the last one leaves.
        queue.push(ShareKey(100), SequenceId(100), 100);
        let served = (101..110).find(|&id| {
            queue.push(ShareKey(id), SequenceId(id), id);
            let next = queue.pop().unwrap();
            queue.charge(if next < 100 { A } else { ShareKey(next) }, 5);
            if next >= 100 {
                queue.leave(ShareKey(next));
            }
            next == 1
        });
        assert!(served.is_some(), "key A starves");
    }

    #[test]
    fn preempted_items_come_first_oldest_first() {
        let mut queue = queue(&[(A, 5)]);
        queue.push_preempted(SequenceId(4), 4);
        queue.push_preempted(SequenceId(2), 2);
        assert_eq!(queue.num_preempted(), 2);
        assert_eq!(order(queue), [2, 4, 5]);
    }

    #[test]
    fn extracted_items_are_gone_and_a_key_is_forgotten_with_its_last_request() {
        let mut queue = queue(&[(A, 0), (A, 1), (B, 2)]);
        queue.push_preempted(SequenceId(7), 7);
        let mut taken = queue.extract(|&id| id == 0 || id == 2 || id == 7);
        taken.sort_unstable();
        assert_eq!(taken, [0, 2, 7]);
        queue.leave(B);
        assert!(!queue.shares.contains_key(&B));
        assert_eq!(order(queue), [1]);
    }
}
