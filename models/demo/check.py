"""Checks that transformers reads a checkpoint as our own code does: same prompts, same logits.

    python check.py final
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import corpus
from model import Config, Llama
from tokenizer import renderer


def our_model(folder, vocabulary):
    model = Llama(Config(vocabulary))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in weights.items()})
    return model


def main(folder):
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    their_tokenizer, our_tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours, render, worst = our_model(folder, our_tokenizer.get_vocab_size()), renderer(), 0.0
    for conversation in corpus.training_conversations(60, seed=7):
        text = render(conversation["messages"], conversation["tools"])
        assert text == their_tokenizer.apply_chat_template(conversation["messages"], tools=conversation["tools"], tokenize=False)
        ids = our_tokenizer.encode(text).ids
        assert ids == their_tokenizer(text)["input_ids"] and our_tokenizer.decode(ids, skip_special_tokens=False) == text
        tokens = torch.tensor(ids)
        with torch.no_grad():
            worst = max(worst, (ours(tokens, [(1, len(ids))]) - theirs(tokens[None]).logits[0]).abs().max().item())
    assert worst < 1e-3, worst
    print(f"same prompts, same tokens; largest difference of logits {worst:.1e}")


if __name__ == "__main__":
    main(Path(__file__).parent / sys.argv[1])
