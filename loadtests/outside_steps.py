#!/usr/bin/env python3
"""How much longer an answer takes its client than the engine's steps for it took: what HTTP, and all else around the steps, adds.

    python3 loadtests/outside_steps.py http://127.0.0.1:8080 [ROUNDS [TOKENS]]

Asks an otherwise idle server for answers of TOKENS tokens to a prompt of 16, streamed and in one piece in turns, and reads
`passerelle_step_duration_seconds` of its `/metrics` before and after each. Both clocks run through the same time in the same process, so
memory and neighbours, which differ from one process and minute to the next, are in both. PASSERELLE_API_KEY is the key, if the
server has keys. What HTTP costs within the steps, since its threads share the processors, is told by the last line.
"""

import json
import os
import statistics
import sys
import time
import urllib.request

URL = sys.argv[1].rstrip("/")
ROUNDS, TOKENS = (int(number) for number in (sys.argv[2:4] + ["20", "64"][len(sys.argv) - 2 :]))
KEY = os.environ.get("PASSERELLE_API_KEY")
STEPS = "passerelle_step_duration_seconds"


def opened(path, body=None):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {KEY}"} if KEY else {})
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(URL + path, data, headers))


def steps():
    """Seconds of all steps so far, and how many."""
    with opened("/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return [sum(float(line.split()[-1]) for line in lines if line.startswith(STEPS + end)) for end in ("_sum", "_count")]


def answered(model, round, stream):
    """Seconds from the request to the end of the answer, and those of its steps; seconds of a step."""
    seconds, count = steps()
    prompt = [10 + round % 50 + index for index in range(16)]
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": stream}
    start = time.perf_counter()
    with opened("/v1/completions", body) as answer:
        # As it comes from the socket: a client that decodes takes more of the processors than all of HTTP in the server.
        while answer.fp.read1(65536):
            pass
    whole = time.perf_counter() - start
    # The last step is counted after its token has left.
    for _ in range(1000):
        seconds_after, count_after = steps()
        if count_after - count >= TOKENS:
            break
    in_steps = seconds_after - seconds
    return whole, in_steps, in_steps / (count_after - count)


def main():
    with opened("/v1/models") as models:
        model = json.load(models)["data"][0]["id"]
    answered(model, 0, True)
    rounds = [[answered(model, 1 + round, stream) for stream in (True, False)] for round in range(ROUNDS)]
    for index, name in enumerate(("streamed", "whole")):
        ratio = statistics.median(answer[index][0] / answer[index][1] for answer in rounds)
        added = statistics.median((answer[index][0] - answer[index][1]) / TOKENS for answer in rounds)
        step = statistics.median(answer[index][2] for answer in rounds)
        print(f"{name}: {ratio:.4f} times the steps' time, {1e3 * added:.3f} ms more a token, of a step of {1e3 * step:.2f} ms")
    ratios = sorted(streamed[2] / whole[2] for streamed, whole in rounds)
    quarter = len(ratios) // 4
    print(f"steps streamed over steps whole: {statistics.median(ratios):.4f} [{ratios[quarter]:.4f}, {ratios[-1 - quarter]:.4f}]")


main()
