//! Whether what is written down is what the engines counted: looked at for each batch of entries, as soon as it is written.
//!
//! An entry and the engine's count come by different ways: the entry by the reservation, which knows nothing of engines, with
//! what a stop string cut off, a fault made free or another try was billed for already taken off on the way; the count is
//! read again where the engine keeps it. So what is lost, doubled or mixed up between them shows, whatever caused it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use passerelle_engine::{Counted, Usage};

use super::entry::{EntryId, Settlement};

/// What an entry must add up to. One without counts is of no engine here, and proves nothing.
#[derive(Debug, Default)]
pub struct Proof {
    counts: Vec<Arc<dyn Counted>>,
    /// Read for the request beside its engine, and billed.
    beside: Tokens,
    /// Counted, and not billed.
    left_out: Tokens,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Tokens {
    prompt: u64,
    generated: u64,
}

/// Entries since the start that were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProofCounts {
    pub checked: u64,
    /// Of them, those that do not add up. More than none is a fault of this program.
    pub unproven: u64,
}

/// What the writing thread has found.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    checked: AtomicU64,
    unproven: AtomicU64,
}

impl Proof {
    /// An engine counts for it.
    pub fn by(&mut self, count: Arc<dyn Counted>) {
        self.counts.push(count);
    }

    pub fn read_beside(&mut self, used: Usage) {
        self.beside = self.beside.plus(Tokens::of(&used));
    }

    /// Nobody pays for this part of what was counted.
    pub fn leave_out(&mut self, unbilled: Usage) {
        self.left_out = self.left_out.plus(Tokens::of(&unbilled));
    }

    /// What is written, and what was counted, with what makes them equal. `None`: no engine here counted.
    fn sides(&self, written: &Usage) -> Option<[Tokens; 2]> {
        let counted = self.counts.iter().map(|count| Tokens::of(&count.counted())).reduce(Tokens::plus)?;
        Some([Tokens::of(written).plus(self.left_out), counted.plus(self.beside)])
    }
}

impl Tokens {
    fn of(usage: &Usage) -> Self {
        Self { prompt: u64::from(usage.prompt_tokens), generated: u64::from(usage.generated_tokens) }
    }

    fn plus(self, other: Self) -> Self {
        Self { prompt: self.prompt + other.prompt, generated: self.generated + other.generated }
    }
}

impl Proofs {
    /// Of one batch.
    pub(super) fn check<'a>(&self, entries: impl Iterator<Item = (EntryId, &'a Settlement, &'a Proof)>) {
        let (mut checked, mut unproven, mut first) = (0, 0, None);
        for (id, settlement, proof) in entries {
            let Some([written, counted]) = proof.sides(&settlement.used) else { continue };
            checked += 1;
            if written != counted {
                unproven += 1;
                first.get_or_insert((id, written, counted));
            }
        }
        self.checked.fetch_add(checked, Ordering::Relaxed);
        self.unproven.fetch_add(unproven, Ordering::Relaxed);
        if let Some((EntryId(entry), written, counted)) = first {
            tracing::error!(entry, entries = unproven, ?written, ?counted, "entries are not what the engines counted");
        }
    }

    pub(super) fn counts(&self) -> ProofCounts {
        let [checked, unproven] = [&self.checked, &self.unproven].map(|count| count.load(Ordering::Relaxed));
        ProofCounts { checked, unproven }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::journal::{Counts, EntryEnd};
    use crate::gateway::quota::UnixSeconds;

    #[derive(Debug)]
    struct Fixed(Usage);

    impl Counted for Fixed {
        fn counted(&self) -> Usage {
            self.0
        }
    }

    fn usage(prompt_tokens: u32, generated_tokens: u32) -> Usage {
        Usage { prompt_tokens, generated_tokens, cached_tokens: 1, measured_ns: 9 }
    }

    fn proof(counted: &[Usage], beside: Usage, left_out: Usage) -> Proof {
        let mut proof = Proof::default();
        counted.iter().for_each(|counted| proof.by(Arc::new(Fixed(*counted))));
        proof.read_beside(beside);
        proof.leave_out(left_out);
        proof
    }

    fn found(entries: &[(Usage, Proof)]) -> ProofCounts {
        let proofs = Proofs::default();
        let (at, end, counts) = (UnixSeconds(0), EntryEnd::Stop, Counts::One);
        let settlement = |used| Settlement { at, used, billed_micros: 0, measured_micros: 0, end, told: None, counts };
        let settled: Vec<_> = entries.iter().map(|(used, proof)| (settlement(*used), proof)).collect();
        proofs.check(settled.iter().map(|(settlement, proof)| (EntryId(1), settlement, *proof)));
        proofs.counts()
    }

    #[test]
    fn an_entry_holds_that_is_what_was_counted_and_read_beside_less_what_nobody_pays_for() {
        let holds = [
            (usage(5, 7), proof(&[usage(5, 7)], usage(0, 0), usage(0, 0))),
            (usage(5, 4), proof(&[usage(5, 7)], usage(0, 0), usage(0, 3))),
            (usage(0, 0), proof(&[usage(5, 7)], usage(0, 0), usage(5, 7))),
            (usage(9, 7), proof(&[usage(5, 7)], usage(4, 0), usage(0, 0))),
            (usage(8, 0), proof(&[usage(5, 0), usage(3, 0)], usage(0, 0), usage(0, 0))),
        ];
        assert_eq!(found(&holds), ProofCounts { checked: 5, unproven: 0 });
    }

    #[test]
    fn entries_that_are_wrong_in_opposite_ways_do_not_make_up_for_each_other() {
        let plain = || proof(&[usage(5, 7)], usage(0, 0), usage(0, 0));
        let wrong = [(usage(5, 6), plain()), (usage(5, 8), plain()), (usage(4, 7), plain()), (usage(5, 7), plain())];
        assert_eq!(found(&wrong), ProofCounts { checked: 4, unproven: 3 });
    }

    #[test]
    fn what_no_engine_here_counted_is_not_looked_at() {
        assert_eq!(found(&[(usage(5, 7), Proof::default())]), ProofCounts::default());
    }
}
