//! Follows one answer through a compiled grammar.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::TokenParser;
use llguidance::api::StopReason;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::SimpleVob;
use passerelle_engine::{Allowed, AnswerEnd, Constraint, ConstraintError};

use super::GrammarError;
use super::compiler::Recipe;

/// A parser, and what it allows where it stands.
#[derive(Clone)]
pub(super) struct Follower {
    parser: TokenParser,
    allowed: SimpleVob,
    end: AnswerEnd,
    /// Of its start.
    recipe: Arc<Recipe>,
}

impl Follower {
    /// At the start of an answer. Errors when the grammar allows no token at all.
    pub(super) fn new(mut parser: TokenParser, recipe: Recipe) -> Result<Self, GrammarError> {
        parser.start_without_prompt();
        let recipe = Arc::new(recipe);
        let mut follower = Self { parser, allowed: SimpleVob::new(), end: AnswerEnd::NotHere, recipe };
        match follower.look() {
            Ok(()) if follower.end != AnswerEnd::Reached => Ok(follower),
            Ok(()) | Err(ConstraintError::Lost) => Err(GrammarError::AllowsNothing),
            Err(ConstraintError::TooComplex) => {
                Err(GrammarError::Invalid("its beginning takes more work than is allowed for a token".to_owned()))
            }
        }
    }

    /// Finds out what may come at the present position.
    fn look(&mut self) -> Result<(), ConstraintError> {
        let parser = &mut self.parser;
        if parser.stopped() {
            return self.stop();
        }
        let may_end = guarded(|| parser.is_accepting())?;
        self.end = if may_end { AnswerEnd::Here } else { AnswerEnd::NotHere };
        match guarded(|| parser.compute_mask())? {
            Ok(allowed) => self.allowed = allowed,
            // No token may follow, which is an end where the grammar has one.
            Err(_) if may_end && parser.stop_reason() == StopReason::NoExtensionBias => self.end = AnswerEnd::Reached,
            Err(_) => return Err(cause(parser.stop_reason())),
        }
        Ok(())
    }

    /// The parser has stopped by itself.
    fn stop(&mut self) -> Result<(), ConstraintError> {
        let reason = self.parser.stop_reason();
        if !reason.is_ok() {
            return Err(cause(reason));
        }
        self.end = AnswerEnd::Reached;
        Ok(())
    }
}

impl Constraint for Follower {
    fn allowed(&self) -> Allowed<'_> {
        Allowed { tokens: self.allowed.as_slice(), end: self.end }
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        // The parser would call it too complex.
        if !self.allowed().allows(token) {
            return Err(ConstraintError::Lost);
        }
        let parser = &mut self.parser;
        let moved = guarded(|| parser.consume_token(token).and_then(|_| parser.check_stop()))?;
        if moved.is_err() {
            return Err(cause(self.parser.stop_reason()));
        }
        self.look()
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }

    fn recipe(&self) -> Option<Vec<u8>> {
        self.recipe.to_bytes()
    }
}

impl std::fmt::Debug for Follower {
    /// Without the text, which the parser holds.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("end", &self.end).finish_non_exhaustive()
    }
}

fn cause(reason: StopReason) -> ConstraintError {
    match reason {
        StopReason::LexerTooComplex | StopReason::ParserTooComplex => ConstraintError::TooComplex,
        _ => ConstraintError::Lost,
    }
}

/// The parser runs on the engine's thread, which a panic must not end.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, ConstraintError> {
    catch_unwind(AssertUnwindSafe(|| Ok(work()))).map_err(|_| ConstraintError::Lost)
}
