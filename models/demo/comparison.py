"""Held-out items for `passerelle score`: documents, prompts with references, and multiple choice (standard library only).

    python comparison.py            writes comparison.jsonl and checks it against the corpus

The documents are whole held-out conversations, the prompts are additions, facts and repetitions, and the choices are facts
of which the answers to other questions are the wrong ones. None of them occurs in the corpus.
"""

import json
import random
from pathlib import Path

from corpus import SKILLS, check_heldout, training_conversations

HERE = Path(__file__).parent
SEED = 22
DOCUMENTS_PER_SKILL = 24
PROMPTS_PER_SKILL = 40
CHOICES = 60
WRONG_CHOICES = 3
PROMPT_SKILLS = ["addition", "facts", "repeat"]
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


def items(seed=SEED):
    """Pairs of an item and the conversation that it asks about."""
    rng = random.Random(seed)
    for skill in [name for name in SKILLS if name != "tools"]:
        for index, (prompt, (asked, answer)) in enumerate(heldout(rng, skill, DOCUMENTS_PER_SKILL).items()):
            yield {"id": f"{skill}-{index}", "text": f"{prompt}{OPEN_ANSWER}{answer}{CLOSE}\n"}, asked
    for skill in PROMPT_SKILLS:
        for index, (prompt, (asked, answer)) in enumerate(heldout(rng, skill, PROMPTS_PER_SKILL).items()):
            yield {"id": f"{skill}-answer-{index}", "prompt": prompt + OPEN_ANSWER, "reference": answer}, asked
    facts = heldout(rng, "facts", CHOICES)
    for index, (prompt, (asked, answer)) in enumerate(facts.items()):
        others = sorted({other for _, other in facts.values()} - {answer})
        choices = rng.sample(others, WRONG_CHOICES) + [answer]
        rng.shuffle(choices)
        item = {"id": f"choice-{index}", "prompt": prompt + OPEN_ANSWER, "choices": choices, "answer": choices.index(answer)}
        yield item, asked


if __name__ == "__main__":
    made = list(items())
    check_heldout([{"messages": asked} for _, asked in made], training_conversations())
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item, _ in made]
    (HERE / "comparison.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} items")
