"""Tokenizers and chat templates, and what the reference implementation makes of text and messages with them.

    pip install -r requirements.txt && python make.py

The tokenizers are trained here on the few lines below, one for each kind that published models use; the templates in
`templates/` were written for this test after the documented formats of each family, and use the Jinja that theirs use.
Nothing comes from a model's repository.

    tokenizers/KIND.json     a tokenizer.json
    tokens.json              for each kind: texts with their ids and what the ids decode to
    chats.json               for each family and conversation: the prompt, or the words of the template's refusal
"""

import datetime
import json
from pathlib import Path

import jinja2
import transformers.utils.chat_template_utils as chat_template_utils
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)

CORPUS = [
    "Le matin, la boulangère ouvre sa boutique ; l'été, il fait déjà chaud à huit heures.",
    "Où sont passés les élèves ? Ils étaient là, près de la forêt, où coule une rivière.",
    "The cat sat on the mat, and the other cats didn't. They're waiting for the rain to stop.",
    "A model reads tokens and writes tokens; what it reads is what it was trained on.",
    "def add(a: int, b: int) -> int:\n    return a + b\n\nfor i in range(10):\n    print(add(i, 2 * i))",
    "fn main() { let total: u64 = (1..=20).product(); println!(\"{total}\"); }",
    "Straße, ægir, łódź, naïve, cœur, señor, 12 345,67 €, 2026-01-02, 3.14159",
]

TEXTS = [
    "",
    " ",
    "Bonjour",
    " Bonjour  à tous",
    "L'été, où vas-tu ? À Besançon, chez Noël… « déjà » !",
    "cœur, ŒUVRE, façade, naïve, ça\u0300, e\u0301te\u0301",
    "The other cats don't sit on the mat; they're waiting.",
    "def f(x):\n\treturn [x ** 2 for _ in range(3)]  # carré\n\n\n",
    "{\"a\": [1, 2.5, null], \"b\": \"\\u00e9\\n\"}",
    "👍🏽 👩‍👩‍👧 🇫🇷 ❤️ 𝔘𝔫𝔦",
    "日本語の文章と中文。한국어 العربية עברית हिन्दी ไทย",
    "1234567890 3.14 -42 0x7f 1e-9",
    "\u00a0\u2028\u200b\ufeff\u0000\u0001\r\n\t",
    "\ufffd\U0010ffff\U000e0001",
    "a" * 50 + " " * 20 + "\n" * 8,
    "<s> </s> <|im_start|>user\n<|im_end|> <unk> <pad>",
    "<s><s></s>x</s> <|im_start|><|im_end|>",
    "[INST] [UNK] [CLS] [SEP] ##ing",
    "▁x ▁▁ y <0x0A> <0xE9>",
    "l'<|im_end|>été<|im_start|>",
]

FRAME = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
WORD_PIECE_FRAME = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
# Llama 3 and Qwen cut text so: contractions, words, digits by threes, punctuation, spaces.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level():
    """Llama 3, Qwen, OLMo, Tekken."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=FRAME, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def byte_fallback():
    """SentencePiece as converted for Llama 2, Mistral 7B, EuroLLM: spaces are ▁, what is unknown falls back to bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=FRAME + bytes_, show_progress=False)
    trained.train_from_iterator([word for line in CORPUS for word in line.split(" ")], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in FRAME])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram():
    """XLM-RoBERTa, CamemBERT."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=260, special_tokens=FRAME, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def word_piece():
    """BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=320, special_tokens=WORD_PIECE_FRAME, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


KINDS = dict(byte_level=byte_level, byte_fallback=byte_fallback, unigram=unigram, word_piece=word_piece)


def tokens_of(tokenizer):
    entries = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        framed = tokenizer.encode(text, add_special_tokens=True).ids
        entries.append(
            dict(
                text=text,
                ids=ids,
                framed=framed,
                decoded=tokenizer.decode(framed, skip_special_tokens=True),
                decoded_all=tokenizer.decode(framed, skip_special_tokens=False),
            )
        )
    return entries


# The special tokens of each family, BOS and EOS first.
FAMILIES = dict(
    llama3="<|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|python_tag|>",
    mistral_v3="<s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
    mistral_v7="<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS]"
    " [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CONTENT] [IMG]",
    ministral3="<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS]"
    " [TOOL_CALLS] [ARGS] [TOOL_RESULTS] [/TOOL_RESULTS] [THINK] [/THINK]",
    qwen25="<|endoftext|> <|im_end|> <|im_start|>",
    qwen3="<|endoftext|> <|im_end|> <|im_start|>",
    olmo2="<|endoftext|> <|endoftext|>",
    chatml="<s> <|im_end|> <|im_start|>",
    apertus="<s> <|assistant_end|> <|system_start|> <|system_end|> <|developer_start|> <|developer_end|> <|user_start|>"
    " <|user_end|> <|assistant_start|> <|inner_prefix|> <|inner_suffix|> <|tools_prefix|> <|tools_suffix|>",
    nemotron="<s> <|im_end|> <|im_start|>",
    smollm3="<|endoftext|> <|im_end|> <|im_start|>",
)
SENTENCE_PIECE_FAMILIES = ["mistral_v3", "chatml"]

ADD = dict(
    type="function",
    function=dict(
        name="add",
        description="Adds two numbers < 10 & \"more\", même négatifs.",
        parameters=dict(
            type="object",
            properties=dict(
                a=dict(type="integer", description="The first."),
                b=dict(type=["number", "null"]),
                mode=dict(type="string", enum=["exact", "arrondi"]),
                parts=dict(type="array", items=dict(type="number")),
            ),
            required=["a", "b"],
        ),
    ),
)
NOW_TOOL = dict(
    type="function",
    function=dict(name="now", description="Says the time.", parameters=dict(type="object", properties={})),
)
TOOLS = [ADD, NOW_TOOL]


def system(content):
    return dict(role="system", content=content)


def user(content):
    return dict(role="user", content=content)


def assistant(content, **more):
    return dict(role="assistant", content=content, **more)


def call(id, name, **arguments):
    return dict(id=id, type="function", function=dict(name=name, arguments=arguments))


def result(id, content):
    return dict(role="tool", tool_call_id=id, content=content)


ONE_CALL = [
    user("Combien font 12 et 7,5 ?"),
    assistant(None, tool_calls=[call("a1b2c3d4e", "add", a=12, b=7.5, mode="exact")]),
    result("a1b2c3d4e", '{"sum": 19.5}'),
]
TWO_CALLS = [
    user("Add 1 and 2, and tell me the time."),
    assistant("Let me see.", tool_calls=[call("a1b2c3d4e", "add", a=1, b=2), call("f1g2h3i4j", "now")]),
    result("a1b2c3d4e", "3"),
    result("f1g2h3i4j", "12:00"),
    assistant("3, and it is noon."),
    user("Merci."),
]
TURNS = [user("Bonjour !"), assistant("Bonjour. Que puis-je pour vous ?"), user("Une blague, s'il te plaît 👍🏽")]
# Whose token ids are kept beside the text.
WITH_IDS = ["system", "tool_pair", "continue", "thought"]
# name, messages, and what else apply_chat_template is given
CASES = [
    ("user", [user("  Bonjour, ça va ?\n")], {}),
    ("code", [user("Fix:\n```python\ndef f():\n\treturn '<b>' \"&\" {x}\n```")], {}),
    ("system", [system("Réponds en français."), user("Hello!")], {}),
    ("turns", TURNS, {}),
    ("system_turns", [system("Be brief."), *TURNS], {}),
    ("closed", TURNS[:2], dict(add_generation_prompt=False)),
    ("tools", [user("What is 1 + 2?")], dict(tools=TOOLS)),
    ("tools_system", [system("Use tools."), user("What is 1 + 2?")], dict(tools=[ADD])),
    ("tool_round", ONE_CALL, dict(tools=TOOLS)),
    ("tool_answer", [system("Sois bref."), *ONE_CALL, assistant("19,5."), user("Et le double ?")], dict(tools=TOOLS)),
    ("tool_pair", TWO_CALLS, dict(tools=TOOLS)),
    ("tool_words", TWO_CALLS[:4], {}),
    ("continue", [user("Count."), assistant("One, two")], dict(continue_final_message=True, add_generation_prompt=False)),
    (
        "continue_space",
        [user("Count."), assistant("One, two, ")],
        dict(continue_final_message=True, add_generation_prompt=False),
    ),
    ("thinking_on", [user("12 + 7?")], dict(enable_thinking=True)),
    ("thinking_off", [user("12 + 7?")], dict(enable_thinking=False)),
    ("think_word", [system("/think Sois bref."), user("12 + 7?")], {}),
    ("no_think_word", [system("Sois bref. /no_think"), user("12 + 7?"), assistant("19"), user("Et 3 ?")], {}),
    ("override", [system("Only this. /system_override"), user("Hi")], {}),
    (
        "thought",
        [user("12 + 7?"), assistant("19", reasoning_content="A sum.\nEasy."), user("And 3?")],
        {},
    ),
    (
        "thought_closed",
        [user("12 + 7?"), assistant("19", reasoning_content="\nA sum.\n")],
        dict(add_generation_prompt=False),
    ),
    ("thought_inline", [user("12 + 7?"), assistant("<think>\nA sum.\n</think>\n\n19"), user("And 3?")], {}),
    ("two_users", [user("a"), user("b")], {}),
    ("assistant_first", [assistant("Bonjour"), user("Hi")], {}),
    ("bad_id", [user("a"), assistant("", tool_calls=[call("call_1", "now")]), result("call_1", "1")], dict(tools=TOOLS)),
    ("only_system", [system("Be brief.")], dict(tools=[ADD])),
    ("date", [user("When?")], dict(date_string="14 juillet 2026")),
    ("builtin", [user("Find."), assistant("", tool_calls=[call("x", "search", query="l'été")])], dict(builtin_tools=["search"])),
    ("tools_in_system", [system("Be brief."), user("1 + 2?")], dict(tools=TOOLS, tools_in="system")),
]


class FrozenDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def family_tokenizer(name):
    """The tokenizer of its kind with the family's special tokens behind."""
    kind = "byte_fallback" if name in SENTENCE_PIECE_FAMILIES else "byte_level"
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizers" / f"{kind}.json"))
    tokens = FAMILIES[name].split()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=tokens[0], eos_token=tokens[1])
    fast.chat_template = (HERE / "templates" / f"{name}.jinja").read_text()
    return kind, tokens, fast


def chats_of(name):
    kind, tokens, tokenizer = family_tokenizer(name)
    cases = {}
    for case, messages, options in CASES:
        options = {"add_generation_prompt": True, **options}
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except jinja2.exceptions.TemplateError as error:
            # What `raise_exception` says is for the user; that a template trips over a message is its own fault.
            refusal = type(error) is jinja2.exceptions.TemplateError
            cases[case] = dict(refused=str(error)) if refusal else dict(broken=str(error))
            continue
        except (TypeError, ValueError) as error:
            cases[case] = dict(broken=str(error))
            continue
        cases[case] = dict(text=text)
        if case in WITH_IDS:
            cases[case]["ids"] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return dict(kind=kind, special_tokens=tokens, cases=cases)


def compact(value):
    return json.dumps(value, ensure_ascii=False)


def main():
    chat_template_utils.datetime = FrozenDatetime
    (HERE / "tokenizers").mkdir(exist_ok=True)
    tokens = {}
    for kind, build in KINDS.items():
        tokenizer = build()
        (HERE / "tokenizers" / f"{kind}.json").write_text(tokenizer.to_str(pretty=False) + "\n")
        tokens[kind] = tokens_of(tokenizer)
    lines = [f'"{kind}": [\n' + ",\n".join(map(compact, entries)) + "\n]" for kind, entries in tokens.items()]
    (HERE / "tokens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")

    conversations = [compact(dict(name=name, messages=messages, options=options)) for name, messages, options in CASES]
    families = []
    for name in FAMILIES:
        family = chats_of(name)
        cases = ",\n".join(f'"{case}": {compact(outcome)}' for case, outcome in family["cases"].items())
        head = f'"kind": {compact(family["kind"])}, "special_tokens": {compact(family["special_tokens"])}'
        families.append(f'"{name}": {{{head}, "cases": {{\n{cases}\n}}}}')
    (HERE / "chats.json").write_text(
        '{"now": %d, "conversations": [\n%s\n],\n"families": {\n%s\n}}\n'
        % (NOW.replace(tzinfo=datetime.timezone.utc).timestamp(), ",\n".join(conversations), ",\n".join(families))
    )


if __name__ == "__main__":
    main()
