"""The same evaluation without a server: the checkpoints are run with transformers (greedy, float32).

    python evaluate_direct.py early middle final [--limit 50]
"""

import argparse
import json
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluate import load_items, measure, parse_json, print_table

HERE = Path(__file__).parent
BATCH = 50


def prompt_of(tokenizer, item):
    return tokenizer.apply_chat_template(
        item["messages"], tools=item["tools"], add_generation_prompt=True, tokenize=False)


def generate(model, tokenizer, prompts):
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    output = model.generate(**batch, max_new_tokens=200, do_sample=False)
    texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1]:], skip_special_tokens=False)
    return [re.split(r"<\|im_end\|>|<\|endoftext\|>", text)[0] for text in texts]


def split_calls(text):
    """The words and the tool calls of an answer."""
    calls = [parse_json(body) for body in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.S)]
    content = re.sub(r"<tool_call>.*?</tool_call>", "", text, flags=re.S).strip()
    return content, [(call.get("name"), call.get("arguments")) if isinstance(call, dict) else (None, None) for call in calls]


def answers(folder, items):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = sorted({prompt_of(tokenizer, item) for item in items}, key=len)
    found = {}
    for start in range(0, len(prompts), BATCH):
        part = prompts[start:start + BATCH]
        found.update(zip(part, generate(model, tokenizer, part)))
    return lambda item: split_calls(found[prompt_of(tokenizer, item)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--failures", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    items, failures = load_items(options.limit), []
    print_table({folder: measure(items, answers(HERE / folder, items), failures) for folder in options.folders})
    if options.failures:
        options.failures.write_text("".join(json.dumps(f, ensure_ascii=False) + "\n" for f in failures))


if __name__ == "__main__":
    main()
