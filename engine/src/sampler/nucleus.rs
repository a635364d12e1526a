//! Candidates for a draw, and the smallest sets of them that reach a mass: top-p and typical-p.

use std::cmp::Ordering;

use passerelle_models::TokenId;

#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) token: TokenId,
    /// Relative to the most likely token's, which is 1.
    pub(super) weight: f64,
    /// How far its surprise is from the entropy, in nats. Only typical-p looks at it.
    atypical: f64,
}

impl Candidate {
    pub(super) fn new(token: TokenId, weight: f64) -> Self {
        Self { token, weight, atypical: 0.0 }
    }
}

/// Keeps the fewest most likely candidates whose weights together reach `wanted`.
pub(super) fn keep_top_p(candidates: &mut Vec<Candidate>, wanted: f64) {
    keep_fewest(candidates, wanted, |a, b| b.weight.total_cmp(&a.weight));
}

/// Keeps the fewest candidates, those of the most usual surprise first, that together reach `share` of the mass:
/// locally typical sampling (Meister et al., arXiv 2202.00666).
pub(super) fn keep_typical(candidates: &mut Vec<Candidate>, share: f64) {
    let total = mass(candidates);
    let surprise = |candidate: &Candidate| -(candidate.weight / total).ln();
    candidates.retain(|candidate| candidate.weight > 0.0);
    let entropy: f64 = candidates.iter().map(|candidate| candidate.weight / total * surprise(candidate)).sum();
    for candidate in candidates.iter_mut() {
        candidate.atypical = (surprise(candidate) - entropy).abs();
    }
    keep_fewest(candidates, share * total, |a, b| a.atypical.total_cmp(&b.atypical));
}

/// The candidate at `point`, in [0, 1), of the total weight.
pub(super) fn draw(candidates: &[Candidate], point: f64) -> TokenId {
    let mut left = point * mass(candidates);
    for candidate in candidates {
        left -= candidate.weight;
        if left < 0.0 {
            return candidate.token;
        }
    }
    // Rounding used the total up before the end: the last candidate that can be.
    let possible = candidates.iter().rev().find(|candidate| candidate.weight > 0.0);
    possible.expect("no filter drops every candidate that can be").token
}

pub(super) fn mass(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}

/// Keeps the first candidates, by `order` and then by id, whose weights together reach `wanted`. Sorts no more than it
/// must.
fn keep_fewest(
    candidates: &mut Vec<Candidate>,
    wanted: f64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering + Copy,
) {
    /// Sorted at first; most distributions need no more. Each further stretch is four times as long.
    const FIRST_STRETCH: usize = 64;
    let first = |a: &Candidate, b: &Candidate| order(a, b).then(a.token.cmp(&b.token));
    let (mut sorted, mut stretch, mut mass) = (0, FIRST_STRETCH, 0.0);
    while sorted < candidates.len() {
        let end = candidates.len().min(sorted + stretch);
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted, first);
        }
        candidates[sorted..end].sort_unstable_by(first);
        for index in sorted..end {
            mass += candidates[index].weight;
            if mass >= wanted {
                candidates.truncate(index + 1);
                return;
            }
        }
        (sorted, stretch) = (end, 4 * stretch);
    }
}
