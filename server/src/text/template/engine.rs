//! minijinja set up to behave as Jinja does inside `transformers`, with limits.

use std::io::{self, Write};
use std::time::Duration;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value as Jinja};
use serde_json::{Map, Value};

use super::super::TextError;
use super::budget::{self, BuiltTooMuch, MAX_BUILT_BYTES};
use super::instrument::{TagTooLong, instrument};
use super::{MAX_PROMPT_BYTES, TEMPLATE_FUEL, python, strftime, tojson};

const RECURSION_LIMIT: usize = 100;
/// Address space, not memory. A list in a list in a list is taken apart by recursion, and the steps of a rendering can make
/// some hundred thousand of them.
const STACK_BYTES: usize = 256 << 20;

/// What the template's author says to whoever wrote the messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(TEMPLATE_FUEL));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    // In debug mode errors carry the template's variables, which are the user's content.
    environment.set_debug(false);
    python::install(&mut environment);
    budget::install(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson::filter);
    environment
}

/// Adds one named template.
pub(super) fn compile(environment: &mut Environment<'static>, name: String, source: &str) -> Result<(), TextError> {
    on_a_large_stack(|| {
        let source = instrument(&without_generation_blocks(source))
            .map_err(|TagTooLong| TextError::TemplateBroken("one of its tags is far too long".into()))?;
        let compiled = environment.add_template_owned(name, source);
        compiled.map_err(|error| TextError::TemplateBroken(describe(&error)))
    })
}

/// Renders one template.
pub(super) fn render(
    environment: &Environment<'_>,
    name: &str,
    context: &Map<String, Value>,
    now: Duration,
) -> Result<String, TextError> {
    on_a_large_stack(|| render_here(environment, name, context, now))
}

/// Both compiling and rendering recurse as deep as a template makes them.
fn on_a_large_stack<T: Send>(work: impl FnOnce() -> Result<T, TextError> + Send) -> Result<T, TextError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".into()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, work).map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(TextError::TemplateBroken("the template engine panicked".into())),
            Err(error) => Err(TextError::TemplateBroken(format!("no thread to run it on: {error}"))),
        }
    })
}

/// Output past the limit stops the rendering, so memory stays bounded.
fn render_here(
    environment: &Environment<'_>,
    name: &str,
    context: &Map<String, Value>,
    now: Duration,
) -> Result<String, TextError> {
    let template = environment.get_template(name).map_err(|error| TextError::TemplateBroken(describe(&error)))?;
    let strftime_now = move |format: &str| strftime::format_utc(format, now);
    let variables = context.iter().map(|(name, value)| (name.clone(), Jinja::from_serialize(value)));
    // A variable, not a function of the environment: it depends on the request, and macros must find it too.
    let context: Jinja = variables.chain([("strftime_now".to_owned(), Jinja::from_function(strftime_now))]).collect();
    let mut output = BoundedOutput::new(MAX_PROMPT_BYTES);
    match template.render_captured_to(&context, &mut output) {
        Ok(_) => String::from_utf8(output.bytes).map_err(|error| TextError::TemplateBroken(error.to_string())),
        Err(_) if output.overflowed => Err(TextError::PromptTooLong { limit: MAX_PROMPT_BYTES }),
        Err(error) => Err(classify(&error)),
    }
}

/// `{% generation %}` only marks the assistant's words for training; here it is a block that changes nothing.
fn without_generation_blocks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(length) = rest[at..].find("%}") else { break };
        let inside = &rest[at + 2..at + length];
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        result.push_str(&rest[..at + 2]);
        match word {
            "generation" => result.push_str(&inside.replace(word, "if true")),
            "endgeneration" => result.push_str(&inside.replace(word, "endif")),
            _ => result.push_str(inside),
        }
        rest = &rest[at + length..];
    }
    result + rest
}

/// An error's text without values of the template's variables.
pub(super) fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    format!("{}{detail}{line}", error.kind())
}

fn classify(error: &Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(Refused(message)) = this.downcast_ref() {
            return TextError::TemplateRefused(message.clone());
        }
        if this.is::<BuiltTooMuch>() {
            return TextError::PromptTooLong { limit: MAX_BUILT_BYTES };
        }
        if this.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TextError::TemplateOutOfFuel { fuel: TEMPLATE_FUEL };
        }
        cause = this.source();
    }
    TextError::TemplateBroken(describe(error))
}

fn raise_exception(message: String) -> Result<Jinja, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "the template raised an exception").with_source(Refused(message)))
}

/// Takes so many bytes and no more.
pub(super) struct BoundedOutput {
    pub(super) bytes: Vec<u8>,
    limit: usize,
    overflowed: bool,
}

impl BoundedOutput {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, overflowed: false }
    }
}

impl Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
