use serde_json::json;

use super::*;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Renders `source` with one user message, tools and special tokens, and the variables `variables`.
fn render_with(source: &str, end: PromptEnd, variables: &Value) -> Result<String, TextError> {
    let special = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let template = template(&[("default", source)], &special)?;
    let tools = [json!({"type": "function", "function": {"name": "add", "description": "a < b & 'é'"}})];
    let prompt = TemplateInput {
        messages: &[json!({"role": "user", "content": "Bonjour"})],
        tools: Some(&tools),
        documents: None,
        end,
        variables: variables.as_object().unwrap(),
        now: Duration::from_secs(1_767_225_600),
    };
    template.render(&prompt)
}

fn render(source: &str) -> Result<String, TextError> {
    render_with(source, PromptEnd::AsIs, &json!({}))
}

fn template(sources: &[(&str, &str)], special: &Value) -> Result<ChatTemplate, TextError> {
    let sources = sources.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect();
    ChatTemplate::new(sources, special.as_object().unwrap().clone())
}

#[test]
fn a_prompt_ends_as_asked() {
    let user = "<|im_start|>user\nBonjour";
    let rendered = |end| render_with(CHATML, end, &json!({})).unwrap();
    assert_eq!(rendered(PromptEnd::AsIs), format!("{user}<|im_end|>\n"));
    assert_eq!(rendered(PromptEnd::GenerationPrompt), format!("{user}<|im_end|>\n<|im_start|>assistant\n"));
    assert_eq!(rendered(PromptEnd::ContinueFinalMessage), user);
}

#[test]
fn templates_find_what_the_reference_implementation_gives_them() {
    let cases = [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        // trim_blocks and lstrip_blocks
        ("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"),
        ("{{ none }} {{ true }} {{ false }} {{ undefined_name }}|{{ 1.0 }}", "None True False |1.0"),
        ("{{ ['a', none, {'b': 1.0}] }}{{ none | string }}{{ ['x'] | upper }}", "['a', None, {'b': 1.0}]None['X']"),
        (
            "{{ documents is iterable }} {{ tools is iterable }} {{ 'a' is sequence }} {{ 1 is iterable }}",
            "False True True False",
        ),
        ("{{ documents is none }} {{ tools is not none }}", "True True"),
        (
            "{{ tools[0] | tojson }}",
            r#"{"type": "function", "function": {"name": "add", "description": "a < b & 'é'"}}"#,
        ),
        ("{{ {'b': [1, 2.5, none], 'a': {}} | tojson }}", r#"{"b": [1, 2.5, null], "a": {}}"#),
        ("{{ {'b': [1, 2], 'a': []} | tojson(indent=2) }}", "{\n  \"b\": [\n    1,\n    2\n  ],\n  \"a\": []\n}"),
        ("{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true) }}", r#"{"a": 1, "b": "\u00e9"}"#),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ '<b>' }}{{ \"a'b\" | tojson }}", "<b>\"a'b\""),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        (
            "{% for n in range(9) %}{% if n == 2 %}{% continue %}{% endif %}{% if n == 4 %}{% break %}{% endif %}{{ n }}{% endfor %}",
            "013",
        ),
        (
            "{{ ' a b '.strip().split(' ')[-1] }}{{ 'abc'.startswith('ab') }}{{ messages[0].get('name', 'x') }}",
            "bTruex",
        ),
        ("{% for key, value in messages[0].items() %}{{ key }},{% endfor %}", "role,content,"),
        ("{{ messages[0].content[:3] }}{{ messages[::-1][0]['role'] }}{{ messages[0].content | length }}", "Bonuser7"),
        ("{{ strftime_now('%d %b %Y') }}", "01 Jan 2026"),
        ("{% macro date() %}{{ strftime_now('%Y') }}{% endmacro %}{{ date() }}", "2026"),
        ("{% for m in messages %}{%- generation -%} {{ m.role }} {%- endgeneration -%}{% endfor %}", "user"),
        ("{{ messages[0].content is string }}{{ messages[0] is mapping }}{{ messages is iterable }}", "TrueTrueTrue"),
        ("{{ messages[0].tool_calls is defined }}{% if messages[0].tool_calls %}x{% endif %}", "False"),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn a_request_s_variables_reach_the_template_but_not_over_its_messages() {
    let variables = json!({"enable_thinking": false, "messages": [], "add_generation_prompt": "x"});
    let rendered = render_with(
        "{{ enable_thinking }}{{ messages | length }}{{ add_generation_prompt }}",
        PromptEnd::AsIs,
        &variables,
    );
    assert_eq!(rendered.unwrap(), "False1False");
}

#[test]
fn a_refusal_carries_the_template_s_words_and_blames_the_request() {
    let error = render("{% macro check() %}{{ raise_exception('Roles must alternate') }}{% endmacro %}{{ check() }}")
        .unwrap_err();
    assert!(matches!(&error, TextError::TemplateRefused(words) if words == "Roles must alternate"), "{error}");
    assert!(error.is_request_fault());
}

#[test]
fn a_template_cannot_run_or_write_without_end() {
    let nested = "{% for a in range(9999) %}".repeat(3) + &"{% endfor %}".repeat(3);
    assert!(matches!(render(&nested), Err(TextError::TemplateOutOfFuel { .. })));
    let verbose = "{% set s = 'x' * 9000 %}{% for n in range(999) %}{{ s }}{% endfor %}";
    assert!(matches!(render(verbose), Err(TextError::PromptTooLong { .. })));
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(render(deep), Err(TextError::TemplateBroken(_))));
}

/// Few steps can build a lot: strings that double, lists that hold themselves, text inside blocks that are kept.
#[test]
fn a_template_cannot_build_without_end() {
    let raw = "x".repeat(100_000);
    let bombs = [
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s | length }}"
            .to_owned(),
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}".to_owned(),
        "{% set ns = namespace(s='a' * 9000) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join('') %}{% endfor %}"
            .to_owned(),
        "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}".to_owned(),
        "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('a', ns.s) %}{% endfor %}".to_owned(),
        "{% set ns = namespace(l=['a']) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}".to_owned(),
        "{% set ns = namespace(l=['a']) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}"
            .to_owned(),
        format!("{{% set s %}}{{% for i in range(99999) %}}{raw}{{% endfor %}}{{% endset %}}{{{{ s | length }}}}"),
        format!("{{% macro m() %}}{{{{ 1 }}}}{raw}{{% endmacro %}}{{% for i in range(99999) %}}{{% set s = m() %}}{{% endfor %}}"),
        "{% set ns = namespace(l=[]) %}{% set s = 'abcd' * 9000 %}{% for i in range(99999) %}{% set ns.l = ns.l + [s[1:]] %}{% endfor %}"
            .to_owned(),
        "{{ 'x' * 999999999 }}".to_owned(),
        "{{ '%999999999s' | format('a') }}".to_owned(),
        "{{ '{:999999999}'.format('a') }}".to_owned(),
        "{{ 'a\nb' | indent(999999999) }}".to_owned(),
    ];
    for bomb in &bombs {
        let error = render(bomb).unwrap_err();
        assert!(
            matches!(error, TextError::PromptTooLong { .. } | TextError::TemplateOutOfFuel { .. }),
            "{bomb:.80}: {error}"
        );
    }
}

#[test]
fn a_macro_that_calls_itself_ends_before_its_arguments_are_large() {
    let doubling = "{% macro f(s, n) %}{{ f(s ~ s, n + 1) if n < 60 }}{% endmacro %}{{ f('aaaaaaaa', 0) }}";
    let error = render(doubling).unwrap_err();
    assert!(matches!(error, TextError::PromptTooLong { .. } | TextError::TemplateBroken(_)), "{error}");
}

#[test]
fn lists_in_lists_without_end_do_no_harm() {
    let nest = "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}";
    assert_eq!(render(nest).unwrap(), "");
    assert!(render(&format!("{nest}{{{{ ns.l }}}}")).unwrap().len() < 1000);
}

#[test]
fn a_broken_template_blames_the_model_and_shows_no_content() {
    for source in ["{% if %}", "{{ messages[0].content.nothing() }}", "{{ no_function() }}", "{{ 'a' | no_filter }}"] {
        let error = render(source).unwrap_err();
        assert!(matches!(error, TextError::TemplateBroken(_)), "{source}: {error}");
        assert!(!error.is_request_fault() && !error.to_string().contains("Bonjour"), "{error}");
    }
    let endless = "x".repeat(MAX_TEMPLATE_SOURCE_BYTES + 1);
    assert!(matches!(render(&endless), Err(TextError::TemplateBroken(_))));
}

#[test]
fn the_template_for_tools_is_used_when_there_are_tools() {
    let template = template(&[("default", "plain"), ("tool_use", "tools")], &json!({})).unwrap();
    let tool = [json!({"type": "function"})];
    let rendered = |tools| {
        let (end, now) = (PromptEnd::AsIs, Duration::ZERO);
        template
            .render(&TemplateInput { messages: &[], tools, documents: None, end, variables: &Map::new(), now })
            .unwrap()
    };
    assert_eq!([rendered(None), rendered(Some(&[])), rendered(Some(&tool))], ["plain", "plain", "tools"]);
}

#[test]
fn a_message_that_cannot_be_continued_says_why() {
    let template = template(&[("default", "{{ messages[0].role }}")], &json!({})).unwrap();
    let render = |messages: &[Value]| {
        let (end, now) = (PromptEnd::ContinueFinalMessage, Duration::ZERO);
        template.render(&TemplateInput { messages, tools: None, documents: None, end, variables: &Map::new(), now })
    };
    for messages in
        [json!([]), json!([{"role": "assistant", "content": null}]), json!([{"role": "user", "content": "a"}])]
    {
        assert!(matches!(render(messages.as_array().unwrap()), Err(TextError::CannotContinue(_))));
    }
}
