"""The corpus: a seeded mixture of the skills, and the held-out prompts of the evaluation.

    python corpus.py            writes heldout.jsonl and checks it against the corpus
    python corpus.py show 20    prints some conversations
"""

import json
import random
import sys
from pathlib import Path

from skills import additions, chat, facts, jsonfill, repeat, stories, tools

HERE = Path(__file__).parent
SKILLS = {"addition": additions, "json": jsonfill, "tools": tools, "facts": facts, "story": stories, "conversation": chat,
          "repeat": repeat}
# (share of the run, weights of the skills): additions are learned first; copying takes longer and gets more later.
PHASES = [
    (0.5, {"addition": 37, "json": 17, "tools": 20, "facts": 14, "story": 5, "conversation": 10}),
    (0.26, {"addition": 15, "json": 40, "tools": 22, "facts": 10, "story": 3, "conversation": 10}),
    (0.24, {"addition": 12, "json": 30, "tools": 14, "facts": 5, "story": 6, "conversation": 10, "repeat": 45}),
]
SYSTEM_PROMPTS = ["You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful assistant.",
                  "You are a friendly assistant.", "You are Passerelle.", "Tu es un assistant utile.", "Answer in short sentences.",
                  "You are a helpful AI assistant.", "Réponds en français ou en anglais.", "Be kind and short."]
SIZE = 230_000
SEED = 20
HELDOUT_PER_SKILL = 150


def with_system_prompt(rng, conversation):
    first = conversation["messages"][0]["role"]
    if first != "system" and not conversation["tools"] and rng.random() < 0.15:
        conversation["messages"].insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    return conversation


def training_conversations(size=SIZE, seed=SEED):
    rng = random.Random(seed)
    for share, weights in PHASES:
        for skill in rng.choices(list(weights), list(weights.values()), k=round(share * size)):
            yield with_system_prompt(rng, SKILLS[skill].sample(rng))


def normal(text):
    return " ".join(text.lower().split())


def prompt_key(messages):
    """What is asked: all turns but the system prompt, whatever the case and the spaces."""
    return tuple((m["role"], normal(m["content"] or json.dumps(m["tool_calls"]))) for m in messages if m["role"] != "system")


def prompt_keys(messages):
    """Every prompt inside a conversation: each prefix before an answer, and each question alone."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            yield prompt_key(messages[:index])
        elif message["role"] == "user":
            yield prompt_key([message])


def heldout_items(per_skill=HELDOUT_PER_SKILL, seed=SEED + 1):
    rng = random.Random(seed)
    for skill, module in SKILLS.items():
        seen = set()
        while len(seen) < per_skill:
            item = module.sample(rng, heldout=True)
            *prompt, _ = item["messages"]
            key = prompt_key(prompt)
            if key not in seen:
                seen.add(key)
                yield {"skill": skill, "messages": openai_messages(prompt), "tools": item["tools"], "expected": item["expected"]}


def openai_messages(messages):
    """Tool calls as clients send them: with an id, and with the arguments as a string."""
    sent, identifier = [], "call_0"
    for message in messages:
        message = dict(message)
        if message.get("tool_calls"):
            call = message["tool_calls"][0]["function"]
            function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
            message["tool_calls"] = [{"id": identifier, "type": "function", "function": function}]
        elif message["role"] == "tool":
            message["tool_call_id"] = identifier
        sent.append(message)
    return sent


def check_heldout(items, conversations):
    """Fails when a held-out prompt occurs in the corpus."""
    heldout = {prompt_key(item["messages"]) for item in items}
    for conversation in conversations:
        for key in prompt_keys(conversation["messages"]):
            assert key not in heldout, f"a held-out prompt is in the corpus: {key}"


def write_heldout(path=HERE / "heldout.jsonl"):
    items = list(heldout_items())
    check_heldout(items, training_conversations())
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    print(f"{len(items)} held-out prompts, none of them among {SIZE} conversations")


def show(count):
    for conversation in training_conversations(count, seed=random.randrange(10**6)):
        print(json.dumps(conversation, ensure_ascii=False))


if __name__ == "__main__":
    show(int(sys.argv[2])) if sys.argv[1:2] == ["show"] else write_heldout()
