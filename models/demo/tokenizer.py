"""Byte-level BPE trained on our corpus, and the ChatML template."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
VOCABULARY = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<tool_call>", "</tool_call>", "<tools>", "</tools>"]
# One digit | a lower-case word with its space | any other word (never with a space, so that a name is
# the same token after a space and after a quote) | punctuation up to its last visible sign | spaces.
PATTERN = r"\p{N}| ?\p{Ll}+|\p{L}+|[^\p{L}\p{N}\r\n]*[^\p{L}\p{N}\s]|\s+"


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS), special_tokens=SPECIAL, min_frequency=8, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def template():
    return (HERE / "chat_template.jinja").read_text().rstrip("\n")


def renderer():
    """Renders conversations as `apply_chat_template` does (a test compares both)."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    compiled = environment.from_string(template())
    return lambda messages, tools=None, prompt=False: compiled.render(
        messages=messages, tools=tools, add_generation_prompt=prompt)


def tokenizer_config():
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "model_max_length": 2048, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": template(),
    }
