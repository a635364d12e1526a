"""schemathesis against a running Passerelle: what its own description promises, tried with generated requests.

    python schemathesis_run.py PATH/TO/passerelle [EXAMPLES A ROUTE]
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


# So that requests get as far as the model: generated names and files are nobody's.
HOOKS = '''
import schemathesis

MODELS = {"embeddings": "bert", "rerank": "bert_reranker", "score": "bert_reranker", "classify": "camembert_classifier"}

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = MODELS.get(context.operation.path.split("/")[-1], "demo")
    if isinstance(body, dict) and isinstance(body.get("max_tokens"), int):
        body["max_tokens"] = min(body["max_tokens"], 16)
    return body
'''


def main(binary, examples):
    schemathesis = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        key = create_key(binary, folder, "schemathesis")
        encoders = [f"{name}={ENCODERS / name}" for name in ["bert", "bert_reranker", "camembert_classifier"]]
        models = [argument for model in ["demo", *encoders] for argument in ["--model", model]]
        with server(binary, folder, *models) as address:
            command = [schemathesis, "run", f"{address}/openapi.json", "--header", f"Authorization: Bearer {key}"]
            command += ["--checks", "all", "--exclude-checks", LEFT_OUT, "--max-examples", examples]
            command += ["--request-timeout", "60", "--generation-database", "none", "--continue-on-failure"]
            with open(os.path.join(folder, "hooks.py"), "w") as file:
                file.write(HOOKS)
            environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": folder}
            return subprocess.run(command, env=environment, cwd=folder).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(os.path.abspath(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "50"))
