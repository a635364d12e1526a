//! How model families write tool calls: what opens and ends a block of calls, how a call stands inside, and how the chat
//! template shows which way a model was trained.

/// A way to write tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>\n{"name": "add", "arguments": {..}}\n</tool_call>`: Hermes, Qwen, SmolLM3.
    Hermes,
    /// `{"name": "add", "parameters": {..}}` as the whole answer, several parted by `;`, with or without `<|python_tag|>`
    /// before; and `<|python_tag|>search.call(query="..")` for the built-in tools of Llama 3.
    Llama3,
    /// `[TOOL_CALLS][{"name": "add", "arguments": {..}}]`: Mistral's tokenizers v3 and v7.
    Mistral,
    /// `[TOOL_CALLS]add[ARGS]{..}`: Mistral's tokenizers v11 and v13.
    MistralNamed,
    /// `<|tools_prefix|>[{"add": {..}}]<|tools_suffix|>`
    Apertus,
    /// `<TOOLCALL>[{"name": "add", "arguments": {..}}]</TOOLCALL>`
    Nemotron,
    /// A call, or a list of calls, as the whole answer or in a fenced block of JSON.
    Json,
}

/// How to write calls: `begin`, the calls with `between` between them, `end`. For whoever holds a model to the format;
/// the parser reads what is written so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLayout {
    pub begin: &'static str,
    pub between: &'static str,
    pub end: &'static str,
    pub call: CallForm,
}

/// How one call is written, for a tool `add`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallForm {
    /// `{"name": "add", "arguments": {..}}`, with this key for the arguments.
    Object { arguments: &'static str },
    /// `{"add": {..}}`
    Keyed,
    /// `add[ARGS]{..}`, with this text between name and arguments.
    Named { separator: &'static str },
}

/// What a call's id must look like for the family's own template to take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallIds {
    Any,
    /// Mistral's templates refuse others.
    NineAlphanumeric,
}

/// Where a block of calls begins and ends in an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Syntax {
    /// Opens a block anywhere. Its first character occurs in it only once.
    pub(super) opener: &'static str,
    /// Opens a block too, and is part of it, where nothing but calls came before.
    pub(super) bare: &'static [char],
    /// Parts calls that have no tags of their own, beside white space.
    pub(super) separator: Option<char>,
    /// After the opener.
    pub(super) end: BlockEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockEnd {
    /// This text, outside a JSON string.
    Tag(&'static str),
    /// The bracket that closes the first value.
    Value(ValueStart),
}

/// Which bracket opens the value that a block ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueStart {
    /// The first bracket of any kind.
    AnyBracket,
    /// A brace; a square bracket only where the block begins: elsewhere it is part of a marker.
    BraceOrLeadingList,
}

impl ToolFormat {
    pub const ALL: [Self; 7] =
        [Self::Hermes, Self::Llama3, Self::Mistral, Self::MistralNamed, Self::Apertus, Self::Nemotron, Self::Json];

    /// What configurations call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
            Self::Llama3 => "llama3",
            Self::Mistral => "mistral",
            Self::MistralNamed => "mistral-named",
            Self::Apertus => "apertus",
            Self::Nemotron => "nemotron",
            Self::Json => "json",
        }
    }

    /// The format whose texts a chat template has.
    pub(in super::super) fn find(has: impl Fn(&str) -> bool) -> Option<Self> {
        match () {
            () if has("<|tools_prefix|>") => Some(Self::Apertus),
            () if has("[TOOL_CALLS]") && has("[ARGS]") => Some(Self::MistralNamed),
            () if has("[TOOL_CALLS]") => Some(Self::Mistral),
            () if has("<TOOLCALL>") => Some(Self::Nemotron),
            () if has("<tool_call>") => Some(Self::Hermes),
            () if has("<|python_tag|>") || has("ipython") => Some(Self::Llama3),
            () => None,
        }
    }

    /// The format whose tokens a vocabulary has. Llama 3's are in vocabularies of models that were never trained on them.
    pub(in super::super) fn of_vocabulary(has_token: impl Fn(&str) -> bool) -> Option<Self> {
        Self::find(has_token).filter(|format| *format != Self::Llama3)
    }

    /// Strings that must reach the parser even where special tokens are left out of an answer's text.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama3 => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::MistralNamed => &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
            Self::Apertus => &["<|tools_prefix|>", "<|tools_suffix|>"],
            Self::Nemotron => &["<TOOLCALL>", "</TOOLCALL>"],
            Self::Json => &[],
        }
    }

    pub fn layout(self) -> CallLayout {
        let (begin, between, end) = match self {
            Self::Hermes => ("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"),
            Self::Llama3 => ("", "; ", ""),
            Self::Mistral => ("[TOOL_CALLS][", ", ", "]"),
            Self::MistralNamed => ("[TOOL_CALLS]", "[TOOL_CALLS]", ""),
            Self::Apertus => ("<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
            Self::Nemotron => ("<TOOLCALL>[", ", ", "]</TOOLCALL>"),
            Self::Json => ("[", ", ", "]"),
        };
        let call = match self {
            Self::Llama3 => CallForm::Object { arguments: "parameters" },
            Self::MistralNamed => CallForm::Named { separator: "[ARGS]" },
            Self::Apertus => CallForm::Keyed,
            Self::Hermes | Self::Mistral | Self::Nemotron | Self::Json => CallForm::Object { arguments: "arguments" },
        };
        CallLayout { begin, between, end, call }
    }

    pub fn call_ids(self) -> CallIds {
        match self {
            Self::Mistral | Self::MistralNamed => CallIds::NineAlphanumeric,
            Self::Hermes | Self::Llama3 | Self::Apertus | Self::Nemotron | Self::Json => CallIds::Any,
        }
    }

    pub(super) fn syntax(self) -> Syntax {
        let tagged = |opener, close| Syntax { opener, bare: &[], separator: None, end: BlockEnd::Tag(close) };
        match self {
            Self::Hermes => tagged("<tool_call>", "</tool_call>"),
            Self::Apertus => tagged("<|tools_prefix|>", "<|tools_suffix|>"),
            Self::Nemotron => tagged("<TOOLCALL>", "</TOOLCALL>"),
            Self::Json => Syntax { bare: &['{', '['], ..tagged("```json", "```") },
            Self::Mistral | Self::MistralNamed => {
                let end = BlockEnd::Value(ValueStart::BraceOrLeadingList);
                Syntax { opener: "[TOOL_CALLS]", bare: &[], separator: None, end }
            }
            Self::Llama3 => {
                let end = BlockEnd::Value(ValueStart::AnyBracket);
                Syntax { opener: "<|python_tag|>", bare: &['{'], separator: Some(';'), end }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opener_s_first_character_occurs_in_it_once() {
        for format in ToolFormat::ALL.into_iter().filter(|format| *format != ToolFormat::Json) {
            let opener = format.syntax().opener;
            let first = opener.chars().next().unwrap();
            assert_eq!(opener.matches(first).count(), 1, "{opener}");
        }
    }

    #[test]
    fn a_template_shows_its_format() {
        let cases = [
            ("{{ '<tool_call>' }}", ToolFormat::Hermes),
            ("{{ '[TOOL_CALLS]' + call.name + '[ARGS]' }}", ToolFormat::MistralNamed),
            ("{{ '[TOOL_CALLS][' }}", ToolFormat::Mistral),
            ("{{ '<|tools_prefix|>[' }}", ToolFormat::Apertus),
            ("Environment: ipython", ToolFormat::Llama3),
            ("<TOOLCALL>", ToolFormat::Nemotron),
        ];
        for (source, format) in cases {
            assert_eq!(ToolFormat::find(|text| source.contains(text)), Some(format), "{source}");
        }
        assert_eq!(ToolFormat::find(|text| "{{ tools | tojson }}".contains(text)), None);
        assert_eq!(ToolFormat::of_vocabulary(|token| token == "<|python_tag|>"), None);
    }
}
