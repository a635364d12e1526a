"""The KL divergences that `passerelle score --against` keeps and `/v1/compare` answers, beside a direct computation.

    python divergence.py PATH/TO/passerelle

Passerelle and transformers run the demo's three checkpoints in float32 on conversations of models/demo/comparison.jsonl.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from served import server

DEMO = Path(__file__).parents[3] / "models" / "demo"
EVERY = 7
CLOSE = 1e-4
IN_F32 = ["--dtype", "f32", "--kv-dtype", "f32"]
SCORED = [("final", "middle"), ("early", "final")]
COMPARED = ["final", "middle", "early"]
ANSWER_TOKENS = 16


class Reference:
    """The checkpoints in transformers."""

    def __init__(self):
        load = AutoModelForCausalLM.from_pretrained
        self.models = {name: load(DEMO / name, dtype=torch.float32).eval() for name in COMPARED}
        self.tokenizer = AutoTokenizer.from_pretrained(DEMO / "final")

    @torch.no_grad()
    def divergences(self, ids, first, second):
        """From the first's distribution to the second's before each token but the first, in nats."""
        logits = (self.models[name](torch.tensor([ids])).logits[0, :-1] for name in (first, second))
        one, other = (torch.log_softmax(rows.double(), dim=-1) for rows in logits)
        return (one.exp() * (one - other)).sum(dim=-1).tolist()


class Worst:
    """Of all differences from the reference."""

    def __init__(self, reference):
        self.reference, self.nats, self.count = reference, 0.0, 0

    def add(self, ids, divergences, pair):
        assert divergences[0] is None, "nothing predicts the first token"
        for ours, theirs in zip(divergences[1:], self.reference.divergences(ids, *pair), strict=True):
            self.nats, self.count = max(self.nats, abs(ours - theirs)), self.count + 1

    def judge(self, what):
        assert self.count > 0, f"{what}: nothing was compared"
        print(f"{what}: {self.count} divergences, at most {self.nats:.1e} nats from the direct computation")
        assert self.nats <= CLOSE, f"{what}: {self.nats} nats apart"


def conversations():
    lines = (DEMO / "comparison.jsonl").read_text(encoding="utf-8").splitlines()
    return [item for item in map(json.loads, lines) if "reference" in item][::EVERY]


def scored(binary, items, first, second):
    """The lists that are kept of each document's tokens, by its id."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.jsonl", Path(folder) / "scores"
        documents = ({"id": item["id"], "text": item["prompt"] + item["reference"]} for item in items)
        data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
        subprocess.run(
            [binary, "score", "--offline", "--data-dir", folder, "--data", data, "--out", out, *IN_F32, "--against",
             DEMO / second, DEMO / first], check=True)
        (file,) = out.glob("*.jsonl")
        _, *lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line["id"]: line["outcome"]["document"]["tokens"] for line in lines}


def check_score(binary, items, reference):
    worst = Worst(reference)
    for pair in SCORED:
        kept = scored(binary, items, *pair)
        for item in items:
            ids = reference.tokenizer(item["prompt"] + item["reference"]).input_ids
            tokens = kept[item["id"]]
            assert tokens["ids"] == ids, item["id"]
            worst.add(ids, tokens["kls"], pair)
    worst.judge("passerelle score --against")


def compared(url, prompt):
    body = {"models": COMPARED, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/compare", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def check_compare(binary, items, reference):
    worst = Worst(reference)
    models = [argument for name in COMPARED for argument in ("--model", f"{name}={DEMO / name}")]
    with tempfile.TemporaryDirectory() as folder, server(binary, folder, "--offline", *IN_F32, *models) as url:
        for item in items:
            answer = compared(url, item["prompt"])
            text = answer["text"]
            ids, length = text["token_ids"], text["num_prompt_tokens"]
            assert ids[:length] == reference.tokenizer(item["prompt"]).input_ids, item["id"]
            assert ids[length:] == answer["models"][0]["token_ids"], item["id"]
            assert len(answer["differences"]) == len(COMPARED) - 1
            for difference in answer["differences"]:
                worst.add(ids, difference["kl"], [COMPARED[index] for index in difference["models"]])
    worst.judge("/v1/compare")


def main():
    torch.set_num_threads(1)
    binary, items, reference = sys.argv[1], conversations(), Reference()
    check_score(binary, items, reference)
    check_compare(binary, items, reference)


if __name__ == "__main__":
    main()
