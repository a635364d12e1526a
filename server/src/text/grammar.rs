//! Grammars: what the text of an answer must look like, made into sets of tokens.
//!
//! A [`Grammar`] is what somebody asked for. A [`GrammarCompiler`] belongs to a model and makes of it a
//! [`Constraint`] for the engine, which follows the answer token by token. Compiling takes milliseconds and is bounded in
//! bytes, depth, work and memory by [`GrammarBounds`]; the work for each token is bounded too, and what exceeds it fails
//! that request alone. The parsing itself is `llguidance`'s.

mod answer;
mod compiler;
mod follower;
mod schema;
mod vocabulary;

use passerelle_engine::Constraint;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use answer::{AnswerForm, CallCount, CallNeed, CallableTool, ToolCalls};
pub use compiler::GrammarCompiler;

/// What an answer must look like, from its first byte to its last.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that this schema accepts; of objects whose schema is silent on other properties, only with those that it
    /// names. Keywords that cannot be enforced are refused.
    JsonSchema(Value),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A context-free grammar in the syntax of Lark, as llguidance extends it.
    Lark(String),
}

/// How much a grammar may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrammarBounds {
    /// Of the schema, expression or grammar as it is written.
    pub max_bytes: usize,
    /// Brackets within brackets.
    pub max_depth: usize,
    /// Symbols after compiling.
    pub max_size: usize,
    /// States of the lexer that an answer may visit; each takes one or two kilobytes.
    pub max_states: usize,
    /// Steps to build the lexer: 50 take about a microsecond.
    pub compile_fuel: usize,
    /// Steps of the lexer for one token: 14 take about a microsecond.
    pub token_fuel: usize,
}

impl Default for GrammarBounds {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 10,
            max_depth: 64,
            max_size: 200_000,
            max_states: 20_000,
            compile_fuel: 1_000_000,
            token_fuel: 100_000,
        }
    }
}

/// Why a grammar was not compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    #[error("has {bytes} bytes; at most {limit} are compiled")]
    TooLong { bytes: usize, limit: usize },
    #[error("nests deeper than {limit} brackets")]
    TooDeep { limit: usize },
    /// Says what of it is at fault, in the words of the compiler.
    #[error("cannot be compiled: {0}")]
    Invalid(String),
    #[error("allows no answer that this model can write")]
    AllowsNothing,
    /// The tokenizer's decoder looks at several tokens at once, so that no token has bytes of its own.
    #[error("cannot be enforced: this model's tokens do not stand for bytes one by one")]
    NotEnforceable,
    /// The system gave no thread, or the compiler is at fault.
    #[error("the compiler failed")]
    Failed,
}

impl GrammarError {
    /// Whether another grammar could succeed: false when the server is at fault.
    pub fn is_request_fault(&self) -> bool {
        *self != Self::Failed
    }
}

/// A compiled grammar, at the start of an answer.
pub type CompiledGrammar = Box<dyn Constraint>;

#[cfg(test)]
mod tests;
