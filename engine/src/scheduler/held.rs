//! Prompts that begin alike and come together: one computes what they share, the others wait for it beside the queue, where
//! they hold up nobody. Each would take as long for it as the one that is at it, and take from its part of the steps. Who finds no
//! row of log-probabilities left in a step is set aside for as long.

use super::Scheduler;
use crate::kv_cache_manager::KvCacheManager;
use crate::request::Class;
use crate::running::Running;
use crate::sequence::Sequence;

impl Scheduler {
    /// Whoever has nothing to wait for any more queues again, before the younger requests of its share.
    pub(super) fn return_held(&mut self) {
        let Self { held, running, cache, .. } = self;
        let free = held.extract_if(.., |aside| !is_being_computed(&mut aside.item, running, cache));
        free.for_each(|aside| self.waiting.put_back(aside.item.share, aside));
    }

    /// Takes the head of the queue, which would run in `class`, out of it if it is new and somebody computes what it begins
    /// with. One that was raised or preempted does not wait again.
    pub(super) fn hold_head(&mut self, class: Class) -> bool {
        let Self { running, cache, waiting, now, .. } = self;
        let may_wait = |head: &mut Sequence| !head.has_started() && head.share.class == class;
        let head = waiting.peek(*now, |sequence| cache.cached_tokens(sequence));
        if !head.is_some_and(|head| may_wait(head) && is_being_computed(head, running, cache)) {
            return false;
        }
        self.set_head_aside()
    }

    /// Takes the head out of the queue until the next step, unless it was preempted.
    pub(super) fn set_head_aside(&mut self) -> bool {
        let aside = self.waiting.set_aside();
        let is_held = aside.is_some();
        self.held.extend(aside);
        is_held
    }
}

/// Whether the first block that `sequence` would compute is one that somebody who runs, and is of no worse class, has yet to
/// compute. Who runs gets on, so nobody waits for ever; but who must compute anew what is cached may be far behind.
fn is_being_computed(sequence: &mut Sequence, running: &mut Running, cache: &KvCacheManager) -> bool {
    if !sequence.may_reuse_prefix() {
        return false;
    }
    let block_size = cache.block_size();
    let first = cache.cached_tokens(sequence) / block_size;
    // For the block of its last token nobody waits: whatever is cached, a part of it is computed anew.
    if first >= (sequence.tokens().len() - 1) / block_size {
        return false;
    }
    let (class, hash) = (sequence.share.class, sequence.block_hashes(block_size)[first]);
    running.iter_mut().any(|other| {
        other.id.class <= class
            && other.may_reuse_prefix()
            && other.num_registered_blocks <= first
            && other.block_hashes(block_size).get(first) == Some(&hash)
    })
}
