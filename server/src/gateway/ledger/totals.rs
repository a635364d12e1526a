//! What was counted since the start.

use passerelle_engine::Usage;

use crate::gateway::journal::ProofCounts;

/// Counts since start. `settled + open == reservations_taken`, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LedgerTotals {
    pub reservations_taken: u64,
    pub settled: u64,
    pub open: u64,
    pub refused: u64,
    /// Of settled reservations, as the engine reported them.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub generated_tokens: u64,
}

/// What `/metrics` shows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LedgerFigures {
    pub totals: LedgerTotals,
    /// Requests that wait in line for a limit to have room for them.
    pub in_line: usize,
    /// Zeros where nothing is written down.
    pub proofs: ProofCounts,
}

impl LedgerTotals {
    pub(super) fn take(&mut self) {
        self.reservations_taken += 1;
        self.open += 1;
    }

    /// One that was taken a moment ago and that nobody was told of.
    pub(super) fn take_back(&mut self) {
        self.reservations_taken -= 1;
        self.open -= 1;
    }

    pub(super) fn settle(&mut self, used: Usage) {
        self.settled += 1;
        self.open -= 1;
        self.prompt_tokens += u64::from(used.prompt_tokens);
        self.cached_tokens += u64::from(used.cached_tokens);
        self.generated_tokens += u64::from(used.generated_tokens);
    }
}
