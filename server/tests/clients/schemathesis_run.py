"""schemathesis against a running Passerelle: what its own description promises, tried with generated requests.

    python schemathesis_run.py PATH/TO/passerelle [EXAMPLES A ROUTE [SEED [SECONDS]]]

SECONDS bounds the run, on a machine that is slow or shared: what it came to says how much was tried.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from served import create_key, server

ENCODERS = pathlib.Path(__file__).parents[3] / "models/tests/fixtures/encoders"
# A field that two others contradict is refused although each of them alone is as described, and a name that is not
# there is not found: that a described request is refused is no fault. Everything else that the tool knows is checked.
LEFT_OUT = "positive_data_acceptance"


# So that requests get as far as the model: generated names and files are nobody's. And so that no answer is so long that a slow
# machine takes longer than the tool waits.
HOOKS = '''
import schemathesis

MODELS = {"embeddings": "bert", "rerank": "bert_reranker", "score": "bert_reranker", "classify": "camembert_classifier"}

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = MODELS.get(context.operation.path.split("/")[-1], "demo")
    if isinstance(body, dict) and isinstance(body.get("prompt_scores_against"), str):
        body["prompt_scores_against"] = "demo"
    for name in ["max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"]:
        if isinstance(body, dict) and isinstance(body.get(name), int):
            body[name] = min(body[name], 16)
    return body
'''


def main(binary, examples="50", seed=None, seconds=None):
    schemathesis = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        # An operator's: a refusal for want of a scope says nothing of what lies behind it.
        scopes = [argument for scope in ["inference", "batch", "admin"] for argument in ["--scope", scope]]
        key = create_key(binary, folder, "schemathesis", "--account", "/", *scopes)
        encoders = [f"{name}={ENCODERS / name}" for name in ["bert", "bert_reranker", "camembert_classifier"]]
        models = [argument for model in ["demo", *encoders] for argument in ["--model", model]]
        with server(binary, folder, *models) as address:
            command = [schemathesis, "run", f"{address}/openapi.json", "--header", f"Authorization: Bearer {key}"]
            command += ["--checks", "all", "--exclude-checks", LEFT_OUT, "--max-examples", examples]
            command += ["--request-timeout", "60", "--generation-database", "none", "--continue-on-failure"]
            command += ["--seed", seed] if seed else []
            command += ["--max-time", seconds] if seconds else []
            with open(os.path.join(folder, "hooks.py"), "w") as file:
                file.write(HOOKS)
            environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": folder}
            return subprocess.run(command, env=environment, cwd=folder).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(os.path.abspath(sys.argv[1]), *sys.argv[2:5]))
