//! minijinja set up to behave as Jinja does inside `transformers`, with limits.

use std::io::{self, Write};
use std::time::Duration;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value as Jinja};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Map, Value};

use super::super::TextError;
use super::{MAX_PROMPT_BYTES, TEMPLATE_FUEL, python, strftime, tojson};

const RECURSION_LIMIT: usize = 100;

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
    environment.set_unknown_method_callback(unknown_method_callback);
    python::install(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson::filter);
    environment
}

/// Renders one template. Output past the limit stops the rendering, so memory stays bounded.
pub(super) fn render(
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
    let mut output = BoundedOutput::default();
    match template.render_captured_to(&context, &mut output) {
        Ok(_) => String::from_utf8(output.bytes).map_err(|error| TextError::TemplateBroken(error.to_string())),
        Err(_) if output.overflowed => Err(TextError::PromptTooLong { limit: MAX_PROMPT_BYTES }),
        Err(error) => Err(classify(&error)),
    }
}

/// `{% generation %}` only marks the assistant's words for training; here it is a block that changes nothing.
pub(super) fn without_generation_blocks(source: &str) -> String {
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

#[derive(Default)]
struct BoundedOutput {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_PROMPT_BYTES {
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
