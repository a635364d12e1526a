"""A running Passerelle for the clients beside this file."""

import contextlib
import json
import os
import signal
import subprocess


def environment(folder):
    """Nothing of the caller's own configuration reaches the server."""
    return {"PATH": os.environ["PATH"], "HOME": folder, "XDG_DATA_HOME": folder, "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def server(binary, folder, *arguments):
    """Starts it on a free loopback port; yields its address."""
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", folder, "--log-level", "warn", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(folder))
    try:
        line = process.stdout.readline()
        if not line.startswith("ready: http://"):
            raise RuntimeError(f"no ready line, but {line!r}")
        yield line.removeprefix("ready: ").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        process.stdout.close()
    if code != 0:
        raise RuntimeError(f"the server ended with {code} after SIGTERM")


def create_key(binary, folder, name, *limits):
    command = [binary, "key", "create", name, "--data-dir", folder, "--json", *limits]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(folder)).stdout
    return json.loads(printed)["key"]
