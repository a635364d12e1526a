"""lm-eval's `local-completions` against a running Passerelle: a likelihood task and a generation task made from sums, whose
figures must be those of a direct computation.

    python evaluation_harness.py PATH/TO/passerelle          (needs lm_eval[api])
"""

import json
import os
import sys
import tempfile
import urllib.request

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from served import server

LIKELIHOOD = """
task: demo_likelihood
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
GENERATION = """
task: demo_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 8, temperature: 0}}
metric_list: [{{metric: exact_match, ignore_case: true}}]
"""
TOLERANCE = 1e-3


def documents():
    """Sums of different lengths, with answers near the right one."""
    for a in range(2, 18):
        b = 3 * a % 11 + 1
        choices = [f" {a + b}", f" {a + b + 1}", f" {a + b - 2}"]
        gold = a % 3
        choices[0], choices[gold] = choices[gold], choices[0]
        yield {"question": f"{a} + {b} =", "choices": choices, "gold": gold}


def post(address, path, body):
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def likelihood(address, question, choice):
    """The choice's log-probability, from the route's other way to tell it: by token id, without echo."""
    whole = post(address, "/tokenize", {"prompt": question + choice, "add_special_tokens": False})["tokens"]
    context = post(address, "/tokenize", {"prompt": question, "add_special_tokens": False})["tokens"]
    body = {"model": "demo", "prompt": whole, "max_tokens": 0, "prompt_logprobs": 0}
    entries = post(address, "/v1/completions", body)["choices"][0]["prompt_logprobs"]
    places = range(len(context), len(whole))
    return sum(entries[place][str(whole[place])]["logprob"] for place in places)


def generated(address, question):
    body = {"model": "demo", "prompt": question, "max_tokens": 8, "temperature": 0, "stop": ["\n", "."]}
    body["add_special_tokens"] = False
    return post(address, "/v1/completions", body)["choices"][0]["text"]


def main(binary):
    docs = list(documents())
    with tempfile.TemporaryDirectory() as folder, server(binary, folder) as address:
        data = os.path.join(folder, "sums.json")
        with open(data, "w") as file:
            file.writelines(json.dumps(doc) + "\n" for doc in docs)
        for name, task in [("likelihood", LIKELIHOOD), ("generation", GENERATION)]:
            with open(os.path.join(folder, f"{name}.yaml"), "w") as file:
                file.write(task.format(data=data))
        results = simple_evaluate(
            model="local-completions",
            model_args={
                "model": "demo",
                "base_url": f"{address}/v1/completions",
                "tokenizer_backend": "remote",
                "max_length": 2048,
            },
            tasks=["demo_likelihood", "demo_generation"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            batch_size=8,
            bootstrap_iters=0,
            log_samples=True,
        )
        worst, right = 0.0, 0
        for sample in results["samples"]["demo_likelihood"]:
            doc = sample["doc"]
            direct = [likelihood(address, doc["question"], choice) for choice in doc["choices"]]
            told = [float(response[0][0]) for response in sample["resps"]]
            worst = max([worst, *(abs(a - b) for a, b in zip(direct, told, strict=True))])
            right += direct.index(max(direct)) == doc["gold"]
        figure = results["results"]["demo_likelihood"]["acc,none"]
        print(f"likelihood: accuracy {figure:.4f}, directly {right / len(docs):.4f}; worst difference {worst:.2e}")
        assert worst < TOLERANCE and abs(figure - right / len(docs)) < TOLERANCE
        for sample in results["samples"]["demo_generation"]:
            direct, told = generated(address, sample["doc"]["question"]), sample["resps"][0][0]
            assert direct.strip() == told.strip(), (sample["doc"], direct, told)
        print(f"generation: {len(docs)} answers are those that the route gives directly")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(os.path.abspath(sys.argv[1]))
