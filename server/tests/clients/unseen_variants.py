"""Checkpoints in seeds and shapes that no fixture has, through a running Passerelle, beside the reference implementation.

    pip install -r ../../../models/tests/fixtures/requirements.txt && python unseen_variants.py PATH/TO/passerelle [SEED]

Every decoder of models/tests/fixtures/make.py and every encoder of make_encoders.py that gives embeddings is made anew: other
sizes, heads, vocabularies and numbers. Token ids go in by /v1/completions (echo, logprobs, return_token_ids) and
/v1/embeddings; what comes back must be within 2e-4 + 1e-3·|ref| of the reference, and the greedy tokens its own where its two
best logits are clearly apart. Prints the worst of each.
"""

import copy
import dataclasses
import json
import math
import os
import random
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch
from safetensors.torch import load_file

from served import server

sys.path.insert(0, str(Path(__file__).parents[3] / "models/tests/fixtures"))
import make  # noqa: E402
import make_encoders  # noqa: E402

LENGTHS = (1, 5, 19, 47, 96)
TOP = 5
GENERATED = 12
# Below this distance between the two best logits, two correct implementations may choose differently.
CLEAR_MARGIN = 1e-2


def draw_shape(variant, chance):
    """Sizes by the names that the variant's own shape has."""
    if "n_head" in variant.shape:
        heads = chance.choice([3, 5, 6])
        return dict(vocab_size=chance.choice([223, 241]), n_head=heads, hidden_size=heads * chance.choice([8, 12, 16]))
    kv_heads = chance.choice([1, 2, 3])
    heads = kv_heads * chance.choice([1, 2, 3])
    return dict(
        vocab_size=chance.choice([223, 241, 307]),
        # The configurations insist on a multiple of the heads, even where a head is of another size.
        hidden_size=heads * chance.choice([14, 18, 22]),
        intermediate_size=chance.choice([52, 76, 112]),
        num_key_value_heads=kv_heads,
        num_attention_heads=heads,
        head_dim=chance.choice([8, 20, 32, 36]),
    )


def decoders(seed, folder):
    """(name, model) of each, its checkpoint in `folder`."""
    make.SEED = seed
    chance = random.Random(seed)
    for variant in make.VARIANTS:
        fields = {key: value for key, value in variant.fields.items() if key != "num_key_value_heads"}
        if "sliding_window" in fields and fields["sliding_window"]:
            fields["sliding_window"] = chance.choice([3, 11, 26])
        shape = {**variant.shape, **draw_shape(variant, chance)}
        model = make.build(dataclasses.replace(variant, shape=shape, fields=fields))
        # A copy, because what is rounded with it (the frequencies of positions) would not come back.
        copy.deepcopy(model).to(variant.dtype).save_pretrained(folder / variant.name)
        if variant.old_rope_keys:
            make.use_old_rope_keys(folder / variant.name / "config.json")
        yield variant.name, model


def encoders(seed, folder):
    """Names of those that give embeddings; their goldens lie beside them."""
    make_encoders.SEED = seed
    make_encoders.HERE = folder
    chance = random.Random(seed)
    for variant in make_encoders.VARIANTS:
        if variant.num_labels:
            continue
        heads = chance.choice([2, 3, 5])
        sizes = dict(vocab_size=chance.choice([223, 241]), num_attention_heads=heads)
        sizes |= dict(hidden_size=heads * chance.choice([8, 12, 16]), intermediate_size=chance.choice([52, 76]))
        if "num_key_value_heads" in variant.fields:
            sizes["num_key_value_heads"] = 1
        bare = dict(has_tokenizer=False, prompts={}, default_prompt=None)
        make_encoders.write(dataclasses.replace(variant, fields={**variant.fields, **sizes}, **bare))
        yield variant.name


def post(url, path, body):
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def excess(found, expected):
    difference = abs(found - expected)
    # What is not a number is beyond every tolerance, and would be passed over by `max`.
    return math.inf if math.isnan(difference) else difference / (2e-4 + 1e-3 * abs(expected))


@torch.no_grad()
def check_decoder(url, name, model, generator):
    worst = 0.0
    for length in LENGTHS:
        ids = make.random_ids(model, length, generator)
        prompt = ids.tolist()
        body = dict(model=name, prompt=prompt, echo=True, logprobs=TOP, return_token_ids=True, temperature=0)
        choice = post(url, "/v1/completions", dict(body, max_tokens=GENERATED, ignore_eos=True))["choices"][0]
        answer = choice["token_ids"]
        assert choice["prompt_token_ids"] == prompt and len(answer) == GENERATED, f"{name}: {choice}"
        whole = torch.tensor(prompt + answer)
        logits = model(whole[None], use_cache=False).logits[0]
        expected = logits.log_softmax(-1)
        for at, token in enumerate(prompt + answer):
            found = choice["logprobs"]["token_logprobs"][at]
            # The first has no probability, nor have tokens that are only ever read.
            if at == 0 or token >= logits.shape[1]:
                continue
            worst = max(worst, excess(found, expected[at - 1, token].item()))
            likeliest = choice["logprobs"]["top_logprobs"][at]
            assert len(likeliest) >= TOP, f"{name}: {likeliest} at {at}"
            for key, value in likeliest.items():
                worst = max(worst, excess(value, expected[at - 1, int(key.removeprefix("token_id:"))].item()))
        for at, token in enumerate(answer, start=length - 1):
            best, second = logits[at].topk(2).values
            if best - second > CLEAR_MARGIN:
                assert token == logits[at].argmax(), f"{name}, {length} tokens: {token} at {at}"
            else:
                worst = max(worst, excess(logits[at, token].item(), best.item()))
    return worst


def check_encoder(url, name, golden):
    worst = 0.0
    for length in make_encoders.LENGTHS:
        ids = golden[f"input_{length}"].tolist()
        found = post(url, "/v1/embeddings", dict(model=name, input=ids))["data"][0]["embedding"]
        expected = golden[f"output_{length}"].tolist()
        worst = max(worst, *(excess(ours, theirs) for ours, theirs in zip(found, expected, strict=True)))
    return worst


def main(program, seed):
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models, made = dict(decoders(seed, root / "decoders")), list(encoders(seed, root / "encoders"))
        fixed = ["--kv-dtype", "f32", "--kv-cache-memory", "64MiB"]
        with server(program, folder, "--models-dir", str(root / "decoders"), *fixed) as url:
            for number, (name, model) in enumerate(models.items()):
                generator = torch.Generator().manual_seed(seed + number)
                results[name] = check_decoder(url, name, model, generator)
        with server(program, folder, "--models-dir", str(root / "encoders")) as url:
            for name in made:
                golden = load_file(root / "encoders" / name / "golden.safetensors")
                results[name] = check_encoder(url, name, golden)
    for name, worst in results.items():
        print(f"{name}: {worst:.3f} of the tolerance at most")
    beyond = [name for name, worst in results.items() if not worst <= 1.0]
    print(f"{len(results)} unseen variants of seed {seed}, {len(beyond)} beyond the tolerance {beyond or ''}")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
