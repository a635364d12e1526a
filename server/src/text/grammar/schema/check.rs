//! What of a schema is refused before it is compiled: what the compiler would not keep to, and what would keep it for minutes.

use std::collections::BTreeSet;
use std::ptr;

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;
use serde_json::{Map, Number, Value};

use super::divisors::Divisors;
use super::{Keywords, composes, subschemas};
use crate::text::grammar::GrammarError;
use crate::text::grammar::compiler::fault;

/// The compiler's numbers are doubles: beyond this, not every whole number is one.
const MAX_EXACT: u64 = 1 << 53;
/// In all: names in `properties`, `required`, and objects in `const` and `enum`; and `prefixItems`.
const MAX_PROPERTIES: usize = 1000;
/// In all; the compiler compares each two of an object.
const MAX_PATTERN_PROPERTIES: usize = 32;
/// Of `pattern`, `format` and `patternProperties`, in all.
const MAX_PATTERNS: usize = 256;
/// The longest place in a schema that a refusal quotes.
const MAX_PLACE_CHARS: usize = 100;
const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];

/// Errors name the keyword at fault, and where it stands, as a JSON pointer.
pub(in crate::text::grammar) fn check_schema(schema: &Value) -> Result<(), GrammarError> {
    let mut check = Check { root: schema, seen: BTreeSet::new(), referred: Vec::new(), counts: Counts::default() };
    check.visit(schema, "#")?;
    // A reference may point to where no keyword of ours has a schema.
    while let Some((schema, place)) = check.referred.pop() {
        check.visit(schema, place)?;
    }
    check.counts.divisors.check(composes(schema))
}

/// Says of a keyword what is wrong with it.
pub(super) fn refused(keyword: &str, place: &str, why: impl std::fmt::Display) -> GrammarError {
    let place: String = place.chars().take(MAX_PLACE_CHARS).collect();
    GrammarError::Invalid(format!("the keyword \"{keyword}\" at {place} {why}"))
}

struct Check<'a> {
    root: &'a Value,
    /// Where the schemas that were visited lie in memory.
    seen: BTreeSet<*const Value>,
    /// Schemas that a `$ref` points to, and the `$ref`.
    referred: Vec<(&'a Value, &'a str)>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    properties: usize,
    pattern_properties: usize,
    patterns: usize,
    divisors: Divisors,
}

impl<'a> Check<'a> {
    fn visit(&mut self, schema: &'a Value, place: &str) -> Result<(), GrammarError> {
        let Value::Object(keywords) = schema else { return Ok(()) };
        if !self.seen.insert(ptr::from_ref(schema)) {
            return Ok(());
        }
        self.counts.add_names(keywords, place)?;
        self.counts.add_patterns(keywords, place)?;
        self.counts.add_numbers(keywords, place)?;
        check_min_properties(keywords, place)?;
        check_additional_items(keywords, place)?;
        if let Some(Value::String(reference)) = keywords.get("$ref") {
            self.referred.extend(target(self.root, reference).map(|schema| (schema, reference.as_str())));
        }
        subschemas(keywords).try_for_each(|(path, schema)| self.visit(schema, &format!("{place}/{path}")))
    }
}

impl Counts {
    fn add_names(&mut self, keywords: &Keywords, place: &str) -> Result<(), GrammarError> {
        let length = |keyword: &str| match keywords.get(keyword) {
            Some(Value::Object(schemas)) => schemas.len(),
            Some(Value::Array(names)) => names.len(),
            _ => 0,
        };
        let (declared, required) = (length("properties"), length("required"));
        let keyword = if declared >= required { "properties" } else { "required" };
        self.add_properties(declared.max(required), keyword, place)?;
        self.add_properties(length("prefixItems"), "prefixItems", place)?;
        self.pattern_properties += length("patternProperties");
        within(self.pattern_properties, MAX_PATTERN_PROPERTIES, "patternProperties", place)
    }

    fn add_properties(&mut self, count: usize, keyword: &str, place: &str) -> Result<(), GrammarError> {
        self.properties += count;
        within(self.properties, MAX_PROPERTIES, keyword, place)
    }

    fn add_patterns(&mut self, keywords: &Keywords, place: &str) -> Result<(), GrammarError> {
        let named = keywords.get("patternProperties").and_then(Value::as_object);
        let named = named.into_iter().flat_map(Map::keys).map(|pattern| ("patternProperties", pattern.as_str()));
        let pattern = keywords.get("pattern").and_then(Value::as_str).map(|pattern| ("pattern", pattern));
        for (keyword, pattern) in named.chain(pattern) {
            self.patterns += 1;
            within(self.patterns, MAX_PATTERNS, keyword, place)?;
            // As JSON Schema has it, and so the compiler: ASCII alone is \d and \w.
            RegexBuilder::new().mk_regex_for_serach(&regex_to_lark(pattern, "dw")).map_err(|error| {
                refused(keyword, place, format!("cannot be followed: {}", fault(&error.to_string())))
            })?;
        }
        self.patterns += usize::from(keywords.contains_key("format"));
        within(self.patterns, MAX_PATTERNS, "format", place)
    }

    fn add_numbers(&mut self, keywords: &Keywords, place: &str) -> Result<(), GrammarError> {
        for keyword in BOUNDS {
            check_exact(keywords.get(keyword), keyword, place)?;
        }
        for keyword in ["const", "enum"] {
            if let Some(value) = keywords.get(keyword) {
                self.add_literal(value, keyword, place)?;
            }
        }
        match keywords.get("multipleOf") {
            Some(Value::Number(divisor)) => self.divisors.add(divisor, place),
            _ => Ok(()),
        }
    }

    /// What stands in `const` and `enum`.
    fn add_literal(&mut self, value: &Value, keyword: &str, place: &str) -> Result<(), GrammarError> {
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.add_literal(item, keyword, place)),
            Value::Object(fields) => {
                self.add_properties(fields.len(), keyword, place)?;
                fields.values().try_for_each(|value| self.add_literal(value, keyword, place))
            }
            value => check_exact(Some(value), keyword, place),
        }
    }
}

fn within(count: usize, most: usize, keyword: &str, place: &str) -> Result<(), GrammarError> {
    if count <= most {
        return Ok(());
    }
    Err(refused(keyword, place, format!("is one too many: a schema may hold {most} of its kind")))
}

fn check_exact(value: Option<&Value>, keyword: &str, place: &str) -> Result<(), GrammarError> {
    match value {
        Some(Value::Number(number)) if !is_exact(number) => {
            let why = format!("holds {number}: beyond {MAX_EXACT} (2^53), numbers are not kept apart");
            Err(refused(keyword, place, why))
        }
        _ => Ok(()),
    }
}

fn is_exact(number: &Number) -> bool {
    match (number.as_i64(), number.as_u64()) {
        (Some(whole), _) => whole.unsigned_abs() <= MAX_EXACT,
        (None, Some(whole)) => whole <= MAX_EXACT,
        (None, None) => number.as_f64().is_some_and(|number| number.abs() <= MAX_EXACT as f64),
    }
}

/// Beyond the names that are required, keys are counted and not compared: two equal ones would be two.
fn check_min_properties(keywords: &Keywords, place: &str) -> Result<(), GrammarError> {
    const MIN_PROPERTIES: &str = "minProperties";
    let Some(fewest) = keywords.get(MIN_PROPERTIES).and_then(Value::as_u64) else { return Ok(()) };
    let names = keywords.get("required").and_then(Value::as_array);
    let required = names.into_iter().flatten().filter_map(Value::as_str).collect::<BTreeSet<_>>().len() as u64;
    if fewest <= required + 1 {
        return Ok(());
    }
    let why = format!("is not supported above {}: one more than the names in \"required\" beside it", required + 1);
    Err(refused(MIN_PROPERTIES, place, why))
}

/// `additionalItems` is of drafts in which `items` is a list. Beside anything else, the compiler would drop one of the two.
fn check_additional_items(keywords: &Keywords, place: &str) -> Result<(), GrammarError> {
    const OTHERS: [&str; 7] = ["prefixItems", "allOf", "anyOf", "oneOf", "const", "enum", "$ref"];
    let lists = [keywords.contains_key("additionalItems"), keywords.get("items").is_some_and(Value::is_array)];
    let beside = OTHERS.into_iter().find(|other| keywords.contains_key(*other));
    match (lists, beside) {
        ([true, _], Some(other)) => {
            Err(refused("additionalItems", place, format!("is not supported beside \"{other}\"")))
        }
        ([_, true], Some("prefixItems")) => {
            Err(refused("prefixItems", place, "is not supported beside a list of \"items\""))
        }
        _ => Ok(()),
    }
}

/// Found as the compiler finds it, letter by letter. `None`: the compiler says so too.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    if matches!(reference, "#" | "#/") {
        return Some(root);
    }
    reference.strip_prefix("#/")?.split('/').try_fold(root, |schema, name| match schema {
        Value::Array(schemas) => schemas.get(name.parse::<usize>().ok()?),
        _ => schema.get(name),
    })
}
