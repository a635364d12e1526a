//! A constraint from a seed: at each position it allows about half of the tokens, and now and then lets the answer end.

use crate::chance::Chance;
use passerelle_engine::{Allowed, AnswerEnd, Constraint, ConstraintError};

#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    chance: Chance,
    allowed: Vec<u32>,
    end: AnswerEnd,
}

impl Pattern {
    /// For a vocabulary of `ids` tokens.
    pub(crate) fn boxed(seed: u64, ids: usize) -> Box<dyn Constraint> {
        let mut chance = Chance(seed);
        let allowed = (0..ids.div_ceil(u32::BITS as usize)).map(|_| chance.next() as u32).collect();
        Box::new(Self { chance, allowed, end: AnswerEnd::NotHere })
    }
}

impl Constraint for Pattern {
    fn allowed(&self) -> Allowed<'_> {
        Allowed { tokens: &self.allowed, end: self.end }
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        assert!(self.allowed().allows(token), "{token} was not allowed");
        let Self { chance, allowed, end } = self;
        // What may come depends on what came.
        chance.0 ^= u64::from(token);
        allowed.iter_mut().for_each(|word| *word = chance.next() as u32);
        *end = match chance.below(10) {
            0 => AnswerEnd::Reached,
            1..=3 => AnswerEnd::Here,
            _ => AnswerEnd::NotHere,
        };
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}
