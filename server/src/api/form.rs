//! What an answer is held to: the structure that its caller asked for, and the calls that its tools allow.

use passerelle_models::TokenId;

use super::causes::grammar_refused;
use super::errors::ApiError;
use super::state::ServedModel;
use super::wire::request::{ChatPrompt, Prompt};
use super::wire::structure::Structure;
use super::wire::tools::{Tool, ToolChoice};
use crate::text::GrammarBounds;
use crate::text::grammar::{AnswerForm, CallCount, CallNeed, CallableTool, CompiledGrammar, ToolCalls};

/// The field to name where no structure is at fault.
const TOOLS: &str = "tools";

/// What of a request says how its answer must look.
#[derive(Debug, Clone)]
pub(crate) struct WantedForm {
    structure: Option<Structure>,
    calls: Option<WantedCalls>,
    /// Whether reasoning may come first.
    chat: Option<Begun>,
}

/// The beginning of the same answer, if it stands in the prompt.
type Begun = Option<String>;

#[derive(Debug, Clone)]
struct WantedCalls {
    tools: Vec<CallableTool>,
    need: CallNeed,
    count: CallCount,
}

impl WantedForm {
    pub(crate) fn of(prompt: &Prompt, structure: Option<Structure>) -> Self {
        match prompt {
            Prompt::Completions { .. } => Self { structure, calls: None, chat: None },
            Prompt::Chat(chat) => {
                let calls = wanted_calls(chat, structure.is_some());
                Self { structure, calls, chat: Some(chat.begun().map(str::to_owned)) }
            }
        }
    }

    /// The form of the answer to `prompt`; `None` where every text will do.
    pub(crate) fn after(&self, model: &ServedModel, prompt: &[TokenId]) -> Option<AnswerForm> {
        if self.structure.is_none() && self.calls.is_none() {
            return None;
        }
        let answers = &model.text.answers;
        let reasoning = self
            .chat
            .as_ref()
            .and_then(|begun| answers.reasoning_after(&model.text.tokenizer, prompt, begun.as_deref()));
        let calls = self.calls.clone().map(|WantedCalls { tools, need, count }| ToolCalls {
            format: answers.tools,
            tools,
            need,
            count,
        });
        let content = self.structure.as_ref().map(|structure| structure.grammar.clone());
        Some(AnswerForm { reasoning, calls, content })
    }

    /// Errors name the field at fault.
    pub(crate) fn compile(
        &self,
        form: &AnswerForm,
        model: &ServedModel,
        bounds: &GrammarBounds,
    ) -> Result<CompiledGrammar, ApiError> {
        model.grammars.compile_answer(form, bounds).map_err(|error| {
            let param = self.at_fault(model, bounds).map_or(TOOLS, |structure| structure.param.as_str());
            grammar_refused(&error, &model.name, param)
        })
    }

    /// The field that most of the work is for, as far as is known before it is done.
    pub(crate) fn param(&self) -> &str {
        self.structure.as_ref().map_or(TOOLS, |structure| &structure.param)
    }

    /// The structure, unless it is fine by itself.
    fn at_fault(&self, model: &ServedModel, bounds: &GrammarBounds) -> Option<&Structure> {
        let structure = self.structure.as_ref()?;
        let fine = self.calls.is_some() && model.grammars.compile(&structure.grammar, bounds).is_ok();
        (!fine).then_some(structure)
    }
}

/// `None` where calls need not be held to anything: nobody forces one, and no tool is strict.
fn wanted_calls(chat: &ChatPrompt, has_structure: bool) -> Option<WantedCalls> {
    let named = |name: &str| chat.tools.iter().filter(|tool| tool.name == *name).map(callable).collect();
    let all = || chat.tools.iter().map(callable).collect::<Vec<_>>();
    let (tools, need, count) = match &chat.tool_choice {
        _ if chat.tools.is_empty() => return None,
        ToolChoice::Named(name) => (named(name), CallNeed::Required, CallCount::One),
        ToolChoice::Required => (all(), CallNeed::Required, chat.call_count),
        ToolChoice::Auto => {
            let is_held =
                has_structure || chat.call_count == CallCount::One || chat.tools.iter().any(|tool| tool.strict);
            (is_held.then(all)?, CallNeed::Allowed, chat.call_count)
        }
    };
    Some(WantedCalls { tools, need, count })
}

fn callable(tool: &Tool) -> CallableTool {
    CallableTool { name: tool.name.clone(), parameters: tool.parameters.clone(), strict: tool.strict }
}
