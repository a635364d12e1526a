//! From what was asked for to a constraint.

use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::thread;

use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::lexerspec::LexerSpec;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Logger, ParserFactory};
use serde::{Deserialize, Serialize};
use serde_json::{Deserializer, Value, json};

use super::answer::{AnswerForm, LooseArguments};
use super::follower::Follower;
use super::schema::{check_schema, closed_schema};
use super::vocabulary::vocabulary;
use super::{CompiledGrammar, Grammar, GrammarBounds, GrammarError};
use crate::text::Tokenizer;

/// Compiling recurses as deep as a grammar's rules are chained; `max_bytes` of rules fit this stack. Only what is used of
/// it is ever memory.
const STACK_BYTES: usize = 256 << 20;
/// The longest explanation of a fault that is passed on.
const MAX_FAULT_CHARS: usize = 300;

/// Compiles grammars for one model.
pub struct GrammarCompiler {
    tokenizer: Tokenizer,
    end_tokens: Vec<u32>,
    /// Made when the first grammar comes: it takes a second for a large vocabulary, and most processes never need it.
    factory: OnceLock<Option<ParserFactory>>,
}

impl GrammarCompiler {
    /// `end_tokens` end an answer, and are text nowhere.
    pub fn new(tokenizer: Tokenizer, end_tokens: Vec<u32>) -> Self {
        Self { tokenizer, end_tokens, factory: OnceLock::new() }
    }

    /// Takes milliseconds, the first time up to a second.
    pub fn compile(&self, grammar: &Grammar, bounds: &GrammarBounds) -> Result<CompiledGrammar, GrammarError> {
        self.compile_source(source(grammar, bounds)?, bounds)
    }

    /// What [`passerelle_engine::Constraint::recipe`] gave elsewhere, for a model with the same tokenizer.
    pub fn compile_recipe(&self, recipe: &[u8]) -> Result<CompiledGrammar, GrammarError> {
        let recipe: Recipe =
            serde_json::from_slice(recipe).map_err(|error| GrammarError::Invalid(error.to_string()))?;
        self.follow(recipe)
    }

    /// [`GrammarCompiler::compile`] for an answer of several parts. Arguments of a tool that is not strict are of its schema
    /// where that can be enforced, and else any object.
    pub fn compile_answer(&self, form: &AnswerForm, bounds: &GrammarBounds) -> Result<CompiledGrammar, GrammarError> {
        if let AnswerForm { reasoning: None, calls: None, content: Some(grammar) } = form {
            return self.compile(grammar, bounds);
        }
        match self.compile_parts(form, LooseArguments::OfSchema, bounds) {
            Err(GrammarError::Invalid(_) | GrammarError::AllowsNothing) if form.has_loose_tools() => {
                self.compile_parts(form, LooseArguments::AnyObject, bounds)
            }
            compiled => compiled,
        }
    }

    fn compile_parts(
        &self,
        form: &AnswerForm,
        loose: LooseArguments,
        bounds: &GrammarBounds,
    ) -> Result<CompiledGrammar, GrammarError> {
        let lark = form.to_lark(&self.tokenizer, loose, bounds)?;
        check_length(&lark, bounds)?;
        self.compile_source(GrammarWithLexer::from_lark(lark), bounds)
    }

    fn compile_source(
        &self,
        source: GrammarWithLexer,
        bounds: &GrammarBounds,
    ) -> Result<CompiledGrammar, GrammarError> {
        self.follow(Recipe { source: TopLevelGrammar::from_grammar(source), bounds: *bounds })
    }

    fn follow(&self, recipe: Recipe) -> Result<CompiledGrammar, GrammarError> {
        let factory = self.factory.get_or_init(|| self.make_factory()).as_ref().ok_or(GrammarError::NotEnforceable)?;
        thread::scope(|scope| {
            let compile = || compile(factory, recipe);
            let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(STACK_BYTES);
            let compiling = thread.spawn_scoped(scope, compile).map_err(|_| GrammarError::Failed)?;
            compiling.join().map_err(|_| GrammarError::Failed)?
        })
    }

    fn make_factory(&self) -> Option<ParserFactory> {
        let tokens = vocabulary(&self.tokenizer, &self.end_tokens)?;
        let mut factory = ParserFactory::new_simple(&tokens).ok()?;
        // It would write what it parses to standard error.
        factory.quiet();
        Some(factory)
    }
}

/// What a constraint was made of: the same tokenizer makes the same of it, in another process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Recipe {
    source: TopLevelGrammar,
    bounds: GrammarBounds,
}

impl Recipe {
    /// `None` for what cannot be written down.
    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(self).ok()
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("tokenizer", &self.tokenizer).finish_non_exhaustive()
    }
}

fn compile(factory: &ParserFactory, recipe: Recipe) -> Result<CompiledGrammar, GrammarError> {
    let limits = limits(&recipe.bounds);
    let source = GrammarInit::Serialized(recipe.source.clone());
    let read = || source.to_internal(Some(factory.tok_env().clone()), limits.clone());
    let invalid = |message: &str| GrammarError::Invalid(fault(message));
    let (grammar, mut lexer) = catch_unwind(AssertUnwindSafe(read)).map_err(|error| invalid(&error.to_string()))?;
    let init = GrammarInit::Internal(grammar, lexer.clone());
    lexer.add_extra_lexemes(&factory.extra_lexemes());
    check_start(&lexer, &limits).map_err(|message| invalid(&message))?;
    let logger = Logger::new(0, 0);
    let parser = factory
        .create_parser_from_init_ext(init, logger, InferenceCapabilities::default(), limits)
        .map_err(|error| invalid(&error.to_string()))?;
    Ok(Box::new(Follower::new(parser, recipe)?))
}

/// The parser begins with the lexer's first byte, whatever that takes: a divisor or an intersection of expressions can take
/// hours and all memory. So it is tried here first, with the fuel that there is; the parser does the very same once more.
fn check_start(lexer: &LexerSpec, limits: &ParserLimits) -> Result<(), String> {
    let first_byte = || {
        let mut states = lexer.to_regex_vec(&mut limits.clone())?;
        states.set_fuel(limits.initial_lexer_fuel);
        let start = states.initial_state(&lexer.all_lexemes());
        for byte in 0..=u8::MAX {
            states.transition(start, byte);
        }
        Ok(states.has_error())
    };
    match catch_unwind(AssertUnwindSafe(first_byte)) {
        Ok(false) => Ok(()),
        Ok(true) => Err("its beginning takes more work than is allowed to compile a grammar".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn limits(bounds: &GrammarBounds) -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: bounds.compile_fuel as u64,
        step_lexer_fuel: bounds.token_fuel as u64,
        max_lexer_states: bounds.max_states,
        max_grammar_size: bounds.max_size,
        // They would quote the answer.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// What the compiler is given, checked against the bounds on what is written.
fn source(grammar: &Grammar, bounds: &GrammarBounds) -> Result<GrammarWithLexer, GrammarError> {
    match grammar {
        Grammar::JsonObject => json_source(&json!({"type": "object"})),
        Grammar::JsonSchema(schema) => {
            check_text(&schema.to_string(), bounds)?;
            json_source(schema)
        }
        Grammar::Regex(regex) => {
            check_text(regex, bounds)?;
            Ok(GrammarWithLexer::from_regex(regex))
        }
        Grammar::Choice(texts) => {
            let quoted: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            let lark = format!("start: CHOICE\nCHOICE: {}\n", quoted.join(" | "));
            check_length(&lark, bounds)?;
            Ok(GrammarWithLexer::from_lark(lark))
        }
        Grammar::Lark(lark) => {
            check_lark(lark, bounds)?;
            Ok(GrammarWithLexer::from_lark(lark.clone()))
        }
    }
}

fn json_source(schema: &Value) -> Result<GrammarWithLexer, GrammarError> {
    Ok(GrammarWithLexer::from_json_schema(closed_schema(schema)?))
}

/// A caller's own grammar, and the schemas in it.
pub(super) fn check_lark(lark: &str, bounds: &GrammarBounds) -> Result<(), GrammarError> {
    const SCHEMA: &str = "%json";
    check_text(lark, bounds)?;
    // What is no JSON stands in some text, or the compiler says so.
    let parsed = |from: usize| Deserializer::from_str(&lark[from..]).into_iter::<Value>().next();
    let mut schemas = lark.match_indices(SCHEMA).filter_map(|(at, _)| parsed(at + SCHEMA.len())?.ok());
    schemas.try_for_each(|schema| check_schema(&schema))
}

pub(super) fn check_text(text: &str, bounds: &GrammarBounds) -> Result<(), GrammarError> {
    check_length(text, bounds)?;
    // Brackets in strings count too: a bound need not be exact to keep recursion shallow.
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > bounds.max_depth {
            return Err(GrammarError::TooDeep { limit: bounds.max_depth });
        }
    }
    Ok(())
}

fn check_length(text: &str, bounds: &GrammarBounds) -> Result<(), GrammarError> {
    let (bytes, limit) = (text.len(), bounds.max_bytes);
    if bytes > limit { Err(GrammarError::TooLong { bytes, limit }) } else { Ok(()) }
}

/// The compiler's words, on one line and short, without the excerpt that it draws below them.
pub(super) fn fault(message: &str) -> String {
    let is_excerpt =
        |line: &str| line.split_once(" | ").is_some_and(|(number, _)| number.trim().parse::<usize>().is_ok());
    let lines: Vec<&str> = message.lines().map(str::trim).collect();
    let told: Vec<&str> = lines.iter().copied().take_while(|line| !is_excerpt(line)).collect();
    let line = regex_fault(&lines).unwrap_or_else(|| schema_fault(&told.join(" ")));
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MAX_FAULT_CHARS).collect()
}

/// Of an expression, which is drawn too, and what is wrong below it.
fn regex_fault(lines: &[&str]) -> Option<String> {
    let (before, _) = lines.iter().find_map(|line| line.split_once("regex parse error:"))?;
    let why = lines.iter().rev().find_map(|line| line.strip_prefix("error: "))?;
    let quoted = before.split_once("invalid regex").and_then(|(_, quoted)| Some(quoted.rsplit_once(" (in ")?.0));
    Some(format!("invalid regex{}: {why}", quoted.unwrap_or_default()))
}

/// With the names that schemas use for what is missing.
fn schema_fault(line: &str) -> String {
    if let Some((_, keys)) = line.split_once("Unimplemented keys: [") {
        let keys = keys.split(']').next().unwrap_or_default();
        let (noun, verb) = if keys.contains(", ") { ("keywords", "are") } else { ("keyword", "is") };
        return format!("the {noun} {keys} {verb} not supported");
    }
    if line.contains("oneOf constraints are not supported") {
        return "the keyword \"oneOf\" is not supported where one value can be of two of its schemas: use \"anyOf\""
            .into();
    }
    line.replace("Unknown format:", "the keyword \"format\" does not support").replace(
        "Only absolute $ref's (#/...) are supported without 'referencing' feature; ref",
        "the keyword \"$ref\" points to nothing outside the schema (#/...), so not to",
    )
}
