"""Held-out items for `passerelle score`: prompts with references, and multiple choice (standard library only).

    python comparison.py            writes comparison.jsonl and checks it against the corpus

The run learned the assistant's words alone, so that only these are asked about. The choices are sums, of which one is right.
None of the prompts occurs in the corpus.
"""

import json
import random
import re
from pathlib import Path

from corpus import SKILLS, check_heldout, training_conversations

HERE = Path(__file__).parent
SEED = 22
PROMPTS_PER_SKILL = 60
# What all three checkpoints have seen, and answer in one or a few sentences.
PROMPT_SKILLS = ["addition", "facts", "story", "conversation", "json"]
CHOICES = 150
WRONG_BY = [-10, -1, 1, 2, 10]
WRONG_CHOICES = 3
OPEN_ANSWER = "<|im_start|>assistant\n"
CLOSE = "<|im_end|>"


def turns(messages):
    """As chat_template.jinja writes them."""
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}{CLOSE}\n" for message in messages)


def heldout(rng, skill, count):
    """Different conversations without tools, each with its last answer apart."""
    found = {}
    while len(found) < count:
        item = SKILLS[skill].sample(rng, heldout=True)
        *asked, answer = item["messages"]
        if not item["tools"] and all(message.get("content") for message in item["messages"]):
            found.setdefault(turns(asked), (asked, answer["content"]))
    return found


def wrong_sums(rng, answer):
    """The same sentence with another last number."""
    *before, total = re.split(r"(\d+)(?=\D*$)", answer, maxsplit=1)[:2]
    rest = answer[len("".join(before)) + len(total):]
    for add in rng.sample([add for add in WRONG_BY if int(total) + add >= 0], WRONG_CHOICES):
        yield f"{''.join(before)}{int(total) + add}{rest}"


def items(seed=SEED):
    """Pairs of an item and the conversation that it asks about."""
    rng = random.Random(seed)
    for skill in PROMPT_SKILLS:
        for index, (prompt, (asked, answer)) in enumerate(heldout(rng, skill, PROMPTS_PER_SKILL).items()):
            yield {"id": f"{skill}-{index}", "prompt": prompt + OPEN_ANSWER, "reference": answer}, asked
    for index, (prompt, (asked, answer)) in enumerate(heldout(rng, "addition", CHOICES).items()):
        choices = [*wrong_sums(rng, answer), answer]
        rng.shuffle(choices)
        item = {"id": f"sum-{index}", "prompt": prompt + OPEN_ANSWER, "choices": choices, "answer": choices.index(answer)}
        yield item, asked


if __name__ == "__main__":
    made = list(items())
    check_heldout([{"messages": asked} for _, asked in made], training_conversations())
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item, _ in made]
    (HERE / "comparison.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} items")
