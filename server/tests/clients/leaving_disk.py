"""Checkpoints on a file system that goes away (FUSE, which this program answers itself): a read that fails while a model loads
is that model's failure, and what is in memory answers on when the whole file system is gone. A map would end the server.

    unshare --mount --map-root-user --propagation private python leaving_disk.py PATH/TO/passerelle PATH/TO/models/demo
"""

import ctypes
import errno
import json
import os
import shutil
import struct
import sys
import tempfile
import threading
import urllib.error
import urllib.request

from served import server

WEIGHTS = "model.safetensors"
# Reads of weights fail from here on; their headers end long before.
FAILS_FROM = 1 << 20
# What the kernel asks, by the numbers of its interface (linux/fuse.h), and how long its head is.
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 17, 18, 25, 26
OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 27, 28, 29, 36, 42
HEAD = struct.Struct("<IIQQIIII")
LONGEST_READ = 1 << 17


class LeavingDisk:
    """`folder`, seen through `place`, to be read. `whole_passes`: by the name of a model, how often its weights can be read to
    their end before reads of them fail."""

    def __init__(self, folder, place, whole_passes):
        self.paths, self.numbers = {1: folder}, {folder: 1}
        self.left = whole_passes
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0".encode()
        # 1: read only.
        self.place, self.system = place.encode(), ctypes.CDLL(None, use_errno=True)
        self.must(self.system.mount(b"disk", self.place, b"fuse", 1, options))
        self.is_there = True
        threading.Thread(target=self.answer_all, daemon=True).start()

    def must(self, failed):
        if failed:
            raise OSError(ctypes.get_errno(), f"{self.place}: {os.strerror(ctypes.get_errno())}")

    def leave(self):
        """Though it is in use: MNT_FORCE and MNT_DETACH."""
        self.must(self.system.umount2(self.place, 1 | 2))
        self.is_there = False

    def answer_all(self):
        while True:
            try:
                asked = os.read(self.device, 1 << 20)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                return
            _, operation, unique, node, *_ = HEAD.unpack_from(asked)
            if operation in (FORGET, INTERRUPT, BATCH_FORGET):
                continue
            try:
                self.reply(unique, self.answer(operation, node, asked[HEAD.size :]))
            except OSError as error:
                self.reply(unique, error=error.errno)

    def reply(self, unique, data=b"", error=0):
        try:
            os.write(self.device, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)
        except OSError:
            # Whoever asked is gone.
            pass

    def answer(self, operation, node, body):
        if operation == INIT:
            _, minor = struct.unpack_from("<II", body)
            return struct.pack("<IIIIHHIIHHI7I", 7, min(minor, 31), LONGEST_READ, 0, 12, 9, LONGEST_READ, *[0] * 11)
        if operation == LOOKUP:
            path = os.path.join(self.paths[node], body.rstrip(b"\0").decode())
            os.stat(path)
            child = self.numbers.setdefault(path, len(self.numbers) + 1)
            self.paths[child] = path
            return struct.pack("<QQQQII", child, 0, 60, 60, 0, 0) + self.attributes(child)
        if operation == GETATTR:
            return struct.pack("<QII", 60, 0, 0) + self.attributes(node)
        if operation in (OPEN, OPENDIR):
            # 1: each reader reads for itself, also two at once (FOPEN_DIRECT_IO).
            return struct.pack("<QII", 0, operation == OPEN, 0)
        if operation == READ:
            return self.read(self.paths[node], *struct.unpack_from("<QI", body, 8))
        if operation == READDIR:
            return self.names(self.paths[node], *struct.unpack_from("<QI", body, 8))
        if operation == STATFS:
            return bytes(80)
        if operation in (FLUSH, RELEASE, RELEASEDIR):
            return b""
        raise OSError(errno.ENOSYS, "not here")

    def attributes(self, node):
        is_ = os.stat(self.paths[node])
        times = [int(time) for time in (is_.st_atime, is_.st_mtime, is_.st_ctime)]
        return struct.pack("<6Q10I", node, is_.st_size, is_.st_blocks, *times, 0, 0, 0, is_.st_mode, 1, 0, 0, 0, 4096, 0)

    def read(self, path, offset, size):
        model, file = path.split(os.sep)[-2:]
        if file == WEIGHTS and offset + size > FAILS_FROM and self.left.get(model) == 0:
            raise OSError(errno.EIO, "the disk is gone")
        with open(path, "rb") as of:
            of.seek(offset)
            data = of.read(size)
        if data and file == WEIGHTS and model in self.left and offset + len(data) == os.path.getsize(path):
            self.left[model] = max(0, self.left[model] - 1)
        return data

    @staticmethod
    def names(folder, offset, size):
        entries = b""
        for number, name in enumerate(sorted(os.listdir(folder))[offset:], offset + 1):
            kind = 4 if os.path.isdir(os.path.join(folder, name)) else 8
            entry = struct.pack("<QQII", number, number, len(name), kind) + name.encode()
            entry += bytes(-len(entry) % 8)
            if len(entries) + len(entry) > size:
                break
            entries += entry
        return entries


def ask(address, model):
    """Returns the status, and the text of the answer."""
    body = {"model": model, "prompt": "12 + 7 =", "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        return error.code, None


def row(address, model):
    with urllib.request.urlopen(f"{address}/v1/models/{model}", timeout=60) as answer:
        return json.load(answer)


def judge(address, disk, models):
    # Forty checkpoints on such a disk are not read whole to be listed.
    states = [row(address, model)["state"] for model in models]
    assert states == ["available"] * len(models), states
    status, said = ask(address, "stays")
    assert (status, bool(said)) == (200, True), (status, said)
    # Files are read twice, to be hashed and to be loaded: one fails at the first time, one at the second.
    for model in ("fails-at-once", "fails-later"):
        assert ask(address, model) == (503, None)
        failed = row(address, model)
        assert failed["state"] == "failed" and WEIGHTS in failed["error"], failed
        print(f"{model}: {failed['error']}")
    assert disk.left == {"fails-at-once": 0, "fails-later": 0}, disk.left
    assert ask(address, "stays") == (200, said)
    disk.leave()
    assert ask(address, "stays") == (200, said), "it is in memory"


def main(binary, demo):
    with tempfile.TemporaryDirectory() as folder:
        disk_folder, place, data = (os.path.join(folder, name) for name in ("disk", "place", "data"))
        os.mkdir(place)
        os.mkdir(data)
        for name, checkpoint in (("stays", "final"), ("fails-at-once", "early"), ("fails-later", "middle")):
            shutil.copytree(os.path.join(demo, checkpoint), os.path.join(disk_folder, name))
        disk = LeavingDisk(disk_folder, place, {"fails-at-once": 0, "fails-later": 1})
        try:
            with server(binary, data, "--models-dir", place) as address:
                judge(address, disk, sorted(os.listdir(disk_folder)))
        finally:
            if disk.is_there:
                disk.leave()
    print("a file system that went away ended no server")


if __name__ == "__main__":
    main(*sys.argv[1:])
