//! Tokenizers and chat templates against the reference implementation: what `server/tests/goldens/make.py` wrote down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::TextError;
use super::detokenizer::Detokenizer;
use super::fixtures::{Random, TEXTS, added_token};
use super::model::TextModel;
use super::prompt::{PromptEncoder, for_template};
use super::template::{PromptEnd, TemplateInput};
use super::tokenizer::{AddSpecialTokens, SkipSpecialTokens, SpecialTokens, Tokenizer};

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    framed: Vec<u32>,
    decoded: String,
    decoded_all: String,
}

#[derive(Deserialize)]
struct Chats {
    now: f64,
    conversations: Vec<Conversation>,
    families: BTreeMap<String, Family>,
}

#[derive(Deserialize)]
struct Conversation {
    name: String,
    messages: Vec<Value>,
    options: Map<String, Value>,
}

#[derive(Deserialize)]
struct Family {
    kind: String,
    /// BOS and EOS first.
    special_tokens: Vec<String>,
    cases: BTreeMap<String, Outcome>,
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
struct Outcome {
    text: Option<String>,
    ids: Option<Vec<u32>>,
    /// The template's own words.
    refused: Option<String>,
    /// The reference fails too, in its own words.
    broken: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn read<T: serde::de::DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&std::fs::read(folder().join(file)).unwrap()).unwrap()
}

fn kinds() -> Vec<(String, Value)> {
    let kinds = ["byte_level", "byte_fallback", "unigram", "word_piece"];
    kinds.map(|kind| (kind.to_owned(), read(&format!("tokenizers/{kind}.json")))).into()
}

fn tokenizer(json: &Value) -> Tokenizer {
    super::fixtures::tokenizer(json)
}

impl Family {
    fn model(&self, name: &str) -> TextModel {
        let mut json: Value = read(&format!("tokenizers/{}.json", self.kind));
        let known = tokenizer(&json);
        let mut next = known.vocab_size();
        let added = json["added_tokens"].as_array_mut().unwrap();
        for token in &self.special_tokens {
            if known.token_id(token).is_none() && !added.iter().any(|known| known["content"] == token.as_str()) {
                added.push(added_token(next, token, true));
                next += 1;
            }
        }
        let config = json!({"bos_token": self.special_tokens[0], "eos_token": self.special_tokens[1]});
        let template = std::fs::read(folder().join(format!("templates/{name}.jinja"))).unwrap();
        TextModel::load(|file| {
            Ok(match file {
                "tokenizer.json" => Some(json.to_string().into_bytes()),
                "tokenizer_config.json" => Some(config.to_string().into_bytes()),
                "chat_template.jinja" => Some(template.clone()),
                _ => None,
            })
        })
        .unwrap()
    }
}

/// A conversation as the API hands it on: arguments are JSON text.
fn as_sent(messages: &[Value]) -> Vec<Value> {
    let mut messages = messages.to_vec();
    let calls = messages.iter_mut().filter_map(|message| message["tool_calls"].as_array_mut()).flatten();
    for call in calls {
        call["function"]["arguments"] = Value::String(call["function"]["arguments"].to_string());
    }
    messages
}

struct Asked {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    end: PromptEnd,
    variables: Map<String, Value>,
    now: Duration,
}

impl Asked {
    fn of(conversation: &Conversation, now: f64) -> Self {
        let mut variables = conversation.options.clone();
        let mut is_set = |name: &str| variables.remove(name).and_then(|value| value.as_bool());
        let end = match (is_set("continue_final_message"), is_set("add_generation_prompt")) {
            (Some(true), _) => PromptEnd::ContinueFinalMessage,
            (_, Some(false)) => PromptEnd::AsIs,
            _ => PromptEnd::GenerationPrompt,
        };
        let tools = variables.remove("tools").map(|tools| tools.as_array().unwrap().clone());
        let messages = as_sent(&conversation.messages);
        Self { messages, tools, end, variables, now: Duration::from_secs_f64(now) }
    }

    fn prompt(&self) -> TemplateInput<'_> {
        TemplateInput {
            messages: &self.messages,
            tools: self.tools.as_deref(),
            documents: None,
            end: self.end,
            variables: &self.variables,
            now: self.now,
        }
    }
}

#[test]
fn text_becomes_the_reference_s_tokens_and_text_again() {
    let goldens: BTreeMap<String, Vec<Encoded>> = read("tokens.json");
    for (kind, json) in kinds() {
        let tokenizer = tokenizer(&json);
        for golden in &goldens[&kind] {
            let encode = |add| tokenizer.encode(&golden.text, add, SpecialTokens::Parse).unwrap();
            assert_eq!(encode(AddSpecialTokens::No), golden.ids, "{kind} {:?}", golden.text);
            assert_eq!(encode(AddSpecialTokens::Yes), golden.framed, "{kind} {:?}", golden.text);
            assert_eq!(tokenizer.decode(&golden.framed, SkipSpecialTokens::Yes), golden.decoded, "{kind}");
            assert_eq!(tokenizer.decode(&golden.framed, SkipSpecialTokens::No), golden.decoded_all, "{kind}");
        }
    }
}

#[test]
fn a_stream_is_the_whole_text_however_it_is_cut() {
    let mut random = Random::new(17);
    for (kind, json) in kinds() {
        let tokenizer = tokenizer(&json);
        let library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        for _ in 0..400 {
            let length = random.below(30);
            let ids: Vec<u32> = (0..length).map(|_| random.below(tokenizer.vocab_size()) as u32).collect();
            for skip in [SkipSpecialTokens::Yes, SkipSpecialTokens::No] {
                let whole = tokenizer.decode(&ids, skip);
                let mut detokenizer = Detokenizer::new(&tokenizer, skip);
                let mut streamed = String::new();
                for id in &ids {
                    streamed.push_str(&detokenizer.push(*id));
                    assert!(whole.starts_with(&streamed), "{kind}: {streamed:?} of {whole:?}");
                }
                streamed.push_str(&detokenizer.finish());
                assert_eq!(streamed, whole, "{kind} {ids:?}");
                // Bytes that are no UTF-8 are kept apart where the library gives up a whole run of them.
                if kind != "byte_fallback" {
                    assert_eq!(whole, library.decode(&ids, skip == SkipSpecialTokens::Yes).unwrap(), "{kind} {ids:?}");
                }
            }
        }
    }
}

#[test]
fn an_answer_goes_on_from_any_whole_character_of_its_prompt() {
    let goldens: BTreeMap<String, Vec<Encoded>> = read("tokens.json");
    for (kind, json) in kinds() {
        let tokenizer = tokenizer(&json);
        for text in goldens[&kind].iter().map(|golden| golden.text.as_str()).chain(TEXTS) {
            let ids = tokenizer.encode(text, AddSpecialTokens::No, SpecialTokens::AsText).unwrap();
            let whole = tokenizer.decode(&ids, SkipSpecialTokens::Yes);
            for cut in 1..ids.len() {
                let (prompt, answer) = ids.split_at(cut);
                let prompt_text = tokenizer.decode(prompt, SkipSpecialTokens::Yes);
                let ends_whole = !prompt_text.ends_with(char::REPLACEMENT_CHARACTER) && whole.starts_with(&prompt_text);
                if !ends_whole {
                    continue;
                }
                let mut detokenizer = Detokenizer::after(&tokenizer, SkipSpecialTokens::Yes, prompt);
                let mut goes_on: String = answer.iter().map(|id| detokenizer.push(*id)).collect();
                goes_on.push_str(&detokenizer.finish());
                assert_eq!(prompt_text + &goes_on, whole, "{kind} cut at {cut}");
            }
        }
    }
}

#[test]
fn messages_become_the_reference_s_prompts() {
    let chats: Chats = read("chats.json");
    let mut prompts = 0;
    for (name, family) in &chats.families {
        let model = family.model(name);
        let template = model.chat_template().unwrap();
        for conversation in &chats.conversations {
            let at = format!("{name} {}", conversation.name);
            let asked = Asked::of(conversation, chats.now);
            let messages: Vec<Value> = asked.messages.iter().map(for_template).collect();
            let rendered = template.render(&TemplateInput { messages: &messages, ..asked.prompt() });
            let ids = PromptEncoder::new(&model.tokenizer, template).encode(&asked.prompt());
            let golden = &family.cases[&conversation.name];
            match (rendered, &golden.text, &golden.refused) {
                (Ok(text), Some(expected), _) => {
                    assert_eq!(text, *expected, "{at}");
                    let expected = model.tokenizer.encode(&text, AddSpecialTokens::No, SpecialTokens::Parse).unwrap();
                    let expected = golden.ids.clone().unwrap_or(expected);
                    assert_eq!(ids.unwrap(), expected, "{at}");
                    prompts += 1;
                }
                (Err(TextError::TemplateRefused(words)), None, Some(expected)) => assert_eq!(words, *expected, "{at}"),
                (Err(TextError::TemplateBroken(_)), None, None) => assert!(golden.broken.is_some(), "{at}"),
                (got, ..) => panic!("{at}: {got:?}, expected {golden:?}"),
            }
        }
    }
    assert!(prompts > 250, "{prompts}");
}

/// Whoever writes every special token of a family into a message adds no special token to the prompt.
#[test]
fn special_tokens_inside_user_text_stay_text() {
    let chats: Chats = read("chats.json");
    for (name, family) in &chats.families {
        let model = family.model(name);
        let template = model.chat_template().unwrap();
        let encoder = PromptEncoder::new(&model.tokenizer, template);
        let hostile = family.special_tokens.join("x") + &family.special_tokens.concat();
        let asked = |content: &str| Asked {
            messages: vec![json!({"role": "user", "content": content})],
            tools: None,
            end: PromptEnd::GenerationPrompt,
            variables: Map::new(),
            now: Duration::from_secs_f64(chats.now),
        };
        let specials = |content: &str| {
            let ids = encoder.encode(&asked(content).prompt()).unwrap();
            ids.into_iter().filter(|id| model.tokenizer.is_special(*id)).collect::<Vec<_>>()
        };
        assert_eq!(specials(&hostile), specials("Bonjour"), "{name}");
        let ids = encoder.encode(&asked(&hostile).prompt()).unwrap();
        let rendered = template.render(&asked(&hostile).prompt()).unwrap();
        let decoded = model.tokenizer.decode(&ids, SkipSpecialTokens::No);
        assert_eq!(decoded.replace(' ', ""), rendered.replace(' ', ""), "{name}");
    }
}
