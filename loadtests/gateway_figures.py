#!/usr/bin/env python3
"""What a gateway without models costs: start, memory, added latency, CPU per event, idle streams.

    python3 loadtests/gateway_figures.py target/release/passerelle target/release/passerelle-loadtests [figure ...]

Starts a replica that computes nothing (`passerelle-loadtests mock`) and gateways before it, in folders of their own, and
prints one line a figure. Figures: start, latency, events, idle. RATE, DURATION (in seconds), ROUNDS, TOKENS (of an answer) and
IDLE_STREAMS are read from the environment. Linux only: memory and CPU come from /proc.
"""

import json
import os
import pathlib
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time

GATEWAY, LOADTESTS = (os.path.abspath(path) for path in sys.argv[1:3])
FIGURES = sys.argv[3:] or ["start", "latency", "events", "idle"]
DEFAULTS = {"RATE": 500, "DURATION": 8, "ROUNDS": 3, "TOKENS": 8}
RATE, SECONDS, ROUNDS, TOKENS = (int(os.environ.get(name, value)) for name, value in DEFAULTS.items())
IDLE_STREAMS = int(os.environ.get("IDLE_STREAMS", 9000))
TICKS = os.sysconf("SC_CLK_TCK")
# A stream is an open file here, in the gateway and in the replica. The low soft limit is for programs that use `select`.
MOST_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES, MOST_FILES))
SCENARIO = """description = "Short chats to a replica that computes nothing."
duration_s = {seconds}
warmup_s = 2
[[traffic]]
name = "chat"
arrivals = {{ kind = "poisson", rate = {rate}.0 }}
workload = {{ kind = "chat", prompt_tokens = 64, output_tokens = {tokens} }}
"""
CONFIG = """[server]
listen = "127.0.0.1:0"
max_connections = 20000
[[upstreams]]
model = "mock"
url = "{url}"
idle_timeout = "2h"
first_byte_timeout = "2h"
[api]
max_concurrent_requests = 20000
request_timeout = "2h"
keep_alive = "1h"
[log]
level = "warn"
"""
# Four levels, each with limits that are never reached.
ACCOUNTS = "\n".join(
    f'[[accounts]]\npath = "{path}"\nlimits = [{{ limit = "requests_per_minute", value = 100000000 }}, '
    '{ limit = "tokens_per_day", value = 1000000000000 }, { limit = "concurrent_requests", value = 1000000 }]\n'
    for path in ("a", "a/b", "a/b/c", "a/b/c/d")
)


class Process:
    """Of which the first line on standard output is `ready: URL`."""

    def __init__(self, command, **options):
        self.began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        line = self.process.stdout.readline()
        self.ready_after = time.monotonic() - self.began
        if not line.startswith("ready: "):
            self.__exit__()
            sys.exit(f"{' '.join(command)} is not ready: {line.strip() or 'it ended'}")
        self.url = line.removeprefix("ready: ").strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def rss(self):
        return self._status("VmRSS:")

    def _status(self, name):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def mock(*options):
    return Process([LOADTESTS, "mock", *options])


class Gateway(Process):
    def __init__(self, folder, upstream, keys=False):
        self.folder = pathlib.Path(folder)
        environment = {"HOME": folder, "PATH": os.environ["PATH"]}
        (self.folder / "p.toml").write_text(CONFIG.format(url=upstream))
        self.key = "none"
        if keys:
            (self.folder / "accounts.toml").write_text(ACCOUNTS)
            run = lambda *arguments: subprocess.run(
                [GATEWAY, *arguments], env=environment, check=True, capture_output=True, text=True, cwd=folder
            ).stdout.strip()
            run("account", "apply", "accounts.toml")
            self.key = run("key", "create", "load", "--account", "a/b/c/d")
        super().__init__([GATEWAY, "serve", "--config", "p.toml"], env=environment, cwd=folder)


def start():
    with mock() as replica, tempfile.TemporaryDirectory() as folder, Gateway(folder, replica.url, keys=True):
        pass  # the binary is in the page cache from here on
    for _ in range(3):
        with mock() as replica, tempfile.TemporaryDirectory() as folder:
            with Gateway(folder, replica.url, keys=True) as gateway:
                time.sleep(0.5)
                print(f"start: ready after {gateway.ready_after * 1e3:.0f} ms, {gateway.rss() / 2**20:.1f} MiB resident")


def figures(url, folder, key):
    scenario = pathlib.Path(folder) / "scenario.toml"
    scenario.write_text(SCENARIO.format(seconds=SECONDS, rate=RATE, tokens=TOKENS))
    tokenizer = pathlib.Path(__file__).parent.parent / "models/demo/final/tokenizer.json"
    command = [LOADTESTS, "run", "--url", url, "--scenario", str(scenario), "--json", "--tokenizer", str(tokenizer)]
    done = subprocess.run(command, env={**os.environ, "OPENAI_API_KEY": key}, capture_output=True, text=True)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)["report"]
    for warning in report["warnings"]:
        print(f"warning: {url}: {warning}", file=sys.stderr)
    return report


def latency():
    with mock() as replica, tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        with Gateway(one, replica.url) as bare, Gateway(other, replica.url, keys=True) as full:
            for _ in range(ROUNDS):
                row = {}
                for name, url, key in (
                    ("direct", replica.url, "none"),
                    ("bare", bare.url, "none"),
                    ("full", full.url, full.key),
                ):
                    report = figures(url, one, key)
                    total, machine = report["figures"]["total"], report["machine"]
                    assert total["finished"] == total["requests"], total
                    row[name] = total["e2e_ms"]
                    row[name]["cores"], row[name]["rate"] = machine["server_cpu_cores"], total["requests_per_s"]
                for name in ("direct", "bare", "full"):
                    added = {q: (row[name][q] - row["direct"][q]) * 1e3 for q in ("p50", "p99")}
                    print(
                        f"latency, {name}: {row[name]['rate']:.0f} requests/s, whole answers p50 {row[name]['p50']:.3f} ms, "
                        f"p99 {row[name]['p99']:.3f} ms; added {added['p50']:.0f} µs and {added['p99']:.0f} µs; "
                        f"{row[name]['cores']:.2f} cores"
                    )


def open_stream(address, key, tokens):
    body = json.dumps({
        "model": "mock", "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "stream": True,
    })
    connection = socket.create_connection(address)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def address_of(url):
    host, port = url.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


def read_until(connections, is_done):
    """Reads all of them until each has said enough."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, b"")
        left = len(connections)
        while left:
            for ready, _ in selector.select():
                part = ready.fileobj.recv(1 << 16)
                said = ready.data + part if len(ready.data) < 65536 else ready.data[-64:] + part
                assert part, said[-200:]
                if is_done(said):
                    selector.unregister(ready.fileobj)
                    left -= 1
                else:
                    selector.modify(ready.fileobj, selectors.EVENT_READ, said)


def events():
    streams, tokens = 50, 400
    with mock("--gap", "10") as replica, tempfile.TemporaryDirectory() as folder:
        with Gateway(folder, replica.url, keys=True) as gateway:
            for _ in range(ROUNDS):
                before = [process.cpu() for process in (gateway, replica)]
                connections = [open_stream(address_of(gateway.url), gateway.key, tokens) for _ in range(streams)]
                read_until(connections, lambda said: b"[DONE]" in said)
                spent = [process.cpu() - cpu for process, cpu in zip((gateway, replica), before)]
                here, there = (cpu / (streams * tokens) * 1e6 for cpu in spent)
                print(
                    f"events: {here:.1f} µs of CPU a streamed event, {streams} streams of {tokens} every 10 ms; "
                    f"the replica, which only writes it, spends {there:.1f} µs"
                )


def idle():
    # Two in the gateway: its client's and its upstream's.
    if MOST_FILES != resource.RLIM_INFINITY and MOST_FILES < 2 * IDLE_STREAMS + 200:
        sys.exit(f"idle: {IDLE_STREAMS} streams need {2 * IDLE_STREAMS + 200} open files: raise `ulimit -Hn`, or set IDLE_STREAMS")
    with mock("--gap", "3600000") as replica, tempfile.TemporaryDirectory() as folder:
        with Gateway(folder, replica.url, keys=True) as gateway:
            warm = [open_stream(address_of(gateway.url), gateway.key, 9) for _ in range(20)]
            read_until(warm, lambda said: b"word" in said)
            before, connections = gateway.rss(), []
            while len(connections) < IDLE_STREAMS:
                few = [open_stream(address_of(gateway.url), gateway.key, 9) for _ in range(100)]
                read_until(few, lambda said: b"word" in said)
                connections += few
            each = (gateway.rss() - before) / len(connections)
            print(f"idle: {len(connections)} streams, {gateway.rss() / 2**20:.0f} MiB resident, {each / 1024:.1f} KiB each")


for figure in FIGURES:
    {"start": start, "latency": latency, "events": events, "idle": idle}[figure]()
