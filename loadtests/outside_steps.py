#!/usr/bin/env python3
"""How much longer an answer takes its client than the engine's steps for it took: what HTTP, and all else around the steps, adds.

    python3 loadtests/outside_steps.py http://127.0.0.1:8080 [ROUNDS [TOKENS]]

Asks an otherwise idle server, of its first model, for answers of TOKENS tokens to a prompt of 16, streamed and in one piece in turns, and
reads `passerelle_step_duration_seconds` of its `/metrics` before and after each. Both times are of the same answer by the same server, so
memory and neighbours, which differ from one process and minute to the next, are in both; the client's has connecting and closing in it.
What HTTP and the client cost within the steps, since their threads share the processors, is told by the last line.
PASSERELLE_API_KEY is the key, if the server has keys.
"""

import json
import os
import statistics
import sys
import time
import urllib.request

STEPS = "passerelle_step_duration_seconds"


class Server:
    def __init__(self, url):
        self.url = url.rstrip("/")
        self.headers = {"content-type": "application/json"}
        if key := os.environ.get("PASSERELLE_API_KEY"):
            self.headers["authorization"] = f"Bearer {key}"
        with self.opened("/v1/models") as models:
            self.model = json.load(models)["data"][0]["id"]

    def opened(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, self.headers), timeout=120)

    def steps(self):
        """Seconds of all steps of the model so far, and how many."""
        with self.opened("/metrics") as answer:
            lines = [line for line in answer.read().decode().splitlines() if f'model="{self.model}"' in line]
        return [sum(float(line.split()[-1]) for line in lines if line.startswith(STEPS + end)) for end in ("_sum", "_count")]

    def answered(self, number, tokens, stream):
        """Seconds from before the connection to the end of the answer, and those of its steps."""
        seconds, count = self.steps()
        # No two answers share a beginning, which a cache would spare the later one.
        prompt = [10 + number] + [10 + index for index in range(15)]
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream}
        start = time.perf_counter()
        with self.opened("/v1/completions", body) as answer:
            # As it comes from the socket: a client that decodes takes more of the processors than all of HTTP in the server.
            while answer.fp.read1(65536):
                pass
        whole = time.perf_counter() - start
        # The last step is counted after its token has left.
        deadline = time.monotonic() + 5
        while (after := self.steps())[1] < count + tokens and time.monotonic() < deadline:
            time.sleep(0.01)
        if after[1] != count + tokens:
            sys.exit(f"{after[1] - count:.0f} steps for an answer of {tokens} tokens: does the server answer others as well?")
        return whole, after[0] - seconds


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    server = Server(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    server.answered(0, tokens, True)
    answers = {True: [], False: []}
    for index in range(rounds):
        for turn, stream in enumerate((True, False) if index % 2 else (False, True)):
            answers[stream].append(server.answered(1 + 2 * index + turn, tokens, stream))
    for stream, name in ((True, "streamed"), (False, "whole")):
        ratio = statistics.median(whole / steps for whole, steps in answers[stream])
        added = statistics.median((whole - steps) / tokens for whole, steps in answers[stream])
        step = statistics.median(steps / tokens for _, steps in answers[stream])
        print(f"{name}: {ratio:.4f} times the steps' time, {1e3 * added:.3f} ms more a token, of a step of {1e3 * step:.2f} ms")
    ratios = sorted(streamed[1] / whole[1] for streamed, whole in zip(answers[True], answers[False]))
    quarter = len(ratios) // 4
    print(f"steps streamed over steps whole: {statistics.median(ratios):.4f} [{ratios[quarter]:.4f}, {ratios[-1 - quarter]:.4f}]")


main()
