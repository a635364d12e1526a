"""A stream that waits long in a queue, through nginx as it comes: comments keep the connection, which nginx would give up
after 60 silent seconds, and nothing is held back.

    python through_nginx.py PATH/TO/passerelle
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import openai

from served import server

CONFIGURATION = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {address}; }} }}
}}
"""
# What nginx waits for a silent server, by default.
PATIENCE = 60


@contextlib.contextmanager
def nginx(folder, address):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.path.join(folder, "nginx.conf")
    with open(path, "w") as file:
        file.write(CONFIGURATION.format(folder=folder, port=port, address=address))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    process = subprocess.Popen([program, "-c", path, "-p", folder])
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def ask_at_length(client):
    """Takes the only place in the engine for a while; tells for how long."""
    began = time.monotonic()
    client.completions.create(
        model="demo", prompt="a", max_tokens=1900, temperature=0, extra_body={"ignore_eos": True}, timeout=600
    )
    return time.monotonic() - began


def hold(client, until):
    """Keeps the place taken."""
    while time.monotonic() < until:
        ask_at_length(client)


def ask_through(proxy):
    """Asks for a stream; what comes, as it comes, and the seconds until then."""
    message = {"role": "user", "content": "What is 12 + 7?"}
    body = {"model": "demo", "messages": [message], "stream": True, "temperature": 0}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{proxy}/v1/chat/completions", json.dumps(body).encode(), headers)
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=900) as answer:
        while piece := answer.read1():
            yield time.monotonic() - began, piece


def content(line):
    """The text in a line of a stream."""
    data = line.removeprefix(b"data: ")
    if data == line or data == b"[DONE]":
        return ""
    choices = json.loads(data).get("choices")
    return choices[0]["delta"].get("content") or "" if choices else ""


def main(binary):
    with tempfile.TemporaryDirectory() as folder:
        configuration = os.path.join(folder, "passerelle.toml")
        with open(configuration, "w") as file:
            file.write("[engine]\nmax_num_seqs = 1\n")
        with server(binary, folder, "--config", configuration) as address, nginx(folder, address) as proxy:
            direct = openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)
            until = time.monotonic() + PATIENCE + 10
            # So many before the one that is measured that it waits for longer than nginx would, on a fast machine too.
            count = min(240, max(32, round(1.5 * PATIENCE / ask_at_length(direct))))
            holders = [threading.Thread(target=hold, args=(direct, until)) for _ in range(count)]
            for holder in holders:
                holder.start()
            time.sleep(2)
            comments, texts, rest = [], [], b""
            for at, piece in ask_through(proxy):
                *lines, rest = (rest + piece).split(b"\n")
                comments += [at for line in lines if line.startswith(b":")]
                if said := "".join(map(content, lines)):
                    texts.append((at, said))
            for holder in holders:
                holder.join()
            text = "".join(said for _, said in texts)
            assert "19" in text, text
            first = texts[0][0]
            print(f"the first token came through nginx after {first:.0f} s")
            assert first > PATIENCE, "the queue was too short to show anything"
            assert comments and comments[0] < PATIENCE, f"no comment came while nginx had patience: {comments}"
            assert len(texts) > 1, "the answer came in one piece"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(os.path.abspath(sys.argv[1]))
