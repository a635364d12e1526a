"""Accuracy per skill on the held-out prompts, through the HTTP API (standard library only).

    python evaluate.py --url http://127.0.0.1:8080 --model early --model middle --model final
"""

import argparse
import json
import re
import urllib.request
from pathlib import Path

HELDOUT = Path(__file__).parent / "heldout.jsonl"


def load_items(limit=None):
    """All held-out items, or the first `limit` of each skill."""
    items, count = [], {}
    for line in HELDOUT.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        count[item["skill"]] = count.get(item["skill"], 0) + 1
        if limit is None or count[item["skill"]] <= limit:
            items.append(item)
    return items


def parse_json(text):
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return None


def is_right(expected, content, calls):
    """`calls` is a list of (name, arguments); all expectations of the item must hold."""
    checks = {
        "sum": lambda total: re.findall(r"\d+", content)[-1:] == [str(total)],
        "json": lambda value: parse_json(content) == value,
        "call": lambda call: calls == [(call["name"], call["arguments"])],
        "no_call": lambda _: not calls,
        "contains": lambda words: all(word.lower() in content.lower() for word in words),
        "ends_with": lambda end: content.rstrip().endswith(end),
    }
    return all(checks[name](value) for name, value in expected.items())


def ask(url, model, item):
    body = {"messages": item["messages"], "temperature": 0, "max_tokens": 200}
    if model:
        body["model"] = model
    if item["tools"]:
        body["tools"] = item["tools"]
    request = urllib.request.Request(
        url.rstrip("/") + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        message = json.load(response)["choices"][0]["message"]
    calls = [(call["function"]["name"], parse_json(call["function"]["arguments"])) for call in message.get("tool_calls") or []]
    return message.get("content") or "", calls


def measure(items, answer, failures=None):
    """Accuracy per skill of `answer(item) -> (content, calls)`."""
    right = {}
    for item in items:
        content, calls = answer(item)
        good = is_right(item["expected"], content, calls)
        right.setdefault(item["skill"], []).append(good)
        if failures is not None and not good:
            failures.append({"item": item, "content": content, "calls": calls})
    return {skill: sum(results) / len(results) for skill, results in right.items()}


def print_table(accuracy):
    models = list(accuracy)
    print("| skill | " + " | ".join(models) + " |")
    print("|---" * (len(models) + 1) + "|")
    for skill in accuracy[models[0]]:
        print(f"| {skill} | " + " | ".join(f"{100 * accuracy[model][skill]:.1f} %" for model in models) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", action="append", help="a model that the server offers; may be repeated")
    parser.add_argument("--limit", type=int, help="prompts per skill")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--failures", help="write the wrong answers to this file")
    options = parser.parse_args()

    items, failures = load_items(options.limit), []
    accuracy = {model or "default": measure(items, lambda item: ask(options.url, model, item), failures)
                for model in options.model or [None]}
    if options.failures:
        Path(options.failures).write_text("".join(json.dumps(f, ensure_ascii=False) + "\n" for f in failures))
    print(json.dumps(accuracy, indent=2)) if options.json else print_table(accuracy)


if __name__ == "__main__":
    main()
