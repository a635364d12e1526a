"""The KL divergence that `passerelle score --against` keeps, beside a direct computation with transformers.

    python divergence.py PATH/TO/passerelle

Both run the demo's checkpoints in float32 on conversations of models/demo/comparison.jsonl.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO = Path(__file__).parents[3] / "models" / "demo"
EVERY = 7
CLOSE = 1e-4


def documents():
    lines = (DEMO / "comparison.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [item for item in map(json.loads, lines) if "reference" in item][::EVERY]
    return [{"id": item["id"], "text": item["prompt"] + item["reference"]} for item in asked]


def scored(binary, items, first, second):
    """The lists that are kept of each document's tokens, by its id."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.jsonl", Path(folder) / "scores"
        data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        subprocess.run(
            [binary, "score", "--offline", "--data-dir", folder, "--data", data, "--out", out, "--dtype", "f32", "--kv-dtype",
             "f32", "--against", DEMO / second, DEMO / first], check=True)
        (file,) = out.glob("*.jsonl")
        _, *lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line["id"]: line["outcome"]["document"]["tokens"] for line in lines}


def direct(items, first, second):
    """The same, by transformers: the divergence of the distribution before each token but the first."""
    models = [AutoModelForCausalLM.from_pretrained(DEMO / name, dtype=torch.float32) for name in (first, second)]
    tokenizer = AutoTokenizer.from_pretrained(DEMO / first)
    for item in items:
        ids = tokenizer(item["text"], return_tensors="pt").input_ids
        with torch.no_grad():
            one, other = (torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1) for model in models)
        yield item["id"], ids[0].tolist(), (one.exp() * (one - other)).sum(dim=-1).tolist()


def main():
    torch.set_num_threads(1)
    binary, worst, count = sys.argv[1], 0.0, 0
    items = documents()
    for first, second in [("final", "middle"), ("early", "final")]:
        kept = scored(binary, items, first, second)
        for identifier, ids, divergences in direct(items, first, second):
            tokens = kept[identifier]
            assert tokens["ids"] == ids, identifier
            assert tokens["kls"][0] is None
            for ours, theirs in zip(tokens["kls"][1:], divergences, strict=True):
                worst, count = max(worst, abs(ours - theirs)), count + 1
    assert worst <= CLOSE, f"{worst} nats apart"
    print(f"{count} divergences, at most {worst:.1e} nats from the direct computation")


if __name__ == "__main__":
    main()
