"""What the pages find when they are run: names, a replica set of one member at the default port, a proxy at the default addresses.

All of it is in namespaces of its own (see `run`), so nothing here looks for free ports.
"""

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

WORK = Path(os.environ.get("DOCS_WORK", "/nonexistent"))
# What the pages call their servers.
HOSTS = ["db1.example", "db2.example", "proxy.example", "mongomux"]
ADMIN = "http://127.0.0.1:9627"


class Trouble(Exception):
    """What the stage could not do."""


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        up_and_running = 0x41
        fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", up_and_running))


def own_etc():
    """An /etc that can be written to, and is gone afterwards. What only root may read is not in it, and nobody needs it."""
    subprocess.run(["cp", "-a", "/etc", WORK / "etc"], stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "--bind", WORK / "etc", "/etc"], check=True)
    Path("/etc/hosts").write_text("127.0.0.1 localhost " + " ".join(HOSTS) + "\n::1 localhost\n")
    Path("/etc/resolv.conf").unlink(missing_ok=True)
    Path("/etc/resolv.conf").write_text("")
    # What runs keeps its sockets there.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    Path("/etc/mongomux").mkdir()
    Path("/etc/mongomux/mongomux.toml").write_text('upstream = "mongodb://db1.example:27017/?replicaSet=rs0"\n')


def environment():
    """Of every block: a home of its own, `mongomux` and the drivers' tools in front of what the system has."""
    programs = WORK / "bin"
    if not programs.exists():
        programs.mkdir()
        (programs / "mongomux").symlink_to(os.environ["DOCS_PROXY"])
        (programs / "python3").symlink_to(os.environ["DOCS_PYTHON"])
        (programs / "mongosh").symlink_to(Path(os.environ["DOCS_NODE_MODULES"]) / ".bin/mongosh")
        home = WORK / "home/.mongodb/mongosh"
        home.mkdir(parents=True)
        (home / "config").write_text('{"enableTelemetry":false,"disableLogging":true,"updateURL":""}')
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DOCS_", "MONGOMUX_", "PYTHON"))}
    return kept | {
        "HOME": str(WORK / "home"),
        "PATH": f"{programs}:{kept['PATH']}",
        "PYTHONPATH": os.environ["DOCS_PYTHONPATH"],
        "MONGOD": os.environ["DOCS_MONGOD"],
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "CARGO_NET_OFFLINE": "true",
        "CARGO_TARGET_DIR": os.environ["DOCS_CARGO_TARGET"],
    }


def start_mongod():
    data = WORK / "db"
    data.mkdir()
    log = WORK / "mongod.log"
    mongod = subprocess.Popen(
        [os.environ["DOCS_MONGOD"], "--replSet", "rs0", "--bind_ip", "127.0.0.1", "--port", "27017", "--dbpath", str(data),
         "--logpath", str(log), "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25",
         "--setParameter", "diagnosticDataCollectionEnabled=false"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    # The driver is the one of the matrix.
    sys.path[:0] = [os.environ["DOCS_PYTHONPATH"]]
    from pymongo import MongoClient

    with MongoClient("mongodb://127.0.0.1:27017/?directConnection=true&serverSelectionTimeoutMS=20000") as client:
        config = {"_id": "rs0", "members": [{"_id": 0, "host": "db1.example:27017"}]}
        client.admin.command({"replSetInitiate": config})
        deadline = time.monotonic() + 30
        while not client.admin.command("hello")["isWritablePrimary"]:
            if time.monotonic() > deadline or mongod.poll() is not None:
                raise Trouble(f"the replica set has no primary: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        client.admin.command("createUser", "service", pwd="secret", roles=["root"])
        client.shop.orders.insert_many({"_id": i, "open": i % 2 == 0} for i in range(100))


def answer(url):
    """The status, with what is said to it where that is not 200."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
        return "200"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode(errors='replace').strip()}"
    except OSError as error:
        return str(error)


def await_url(url, process, seconds=20):
    """Until it answers 200. A process that has ended meanwhile never will."""
    deadline = time.monotonic() + seconds
    while (said := answer(url)) != "200":
        if process.poll() is not None:
            raise Trouble(f"ended with code {process.returncode} before {url} answered")
        if time.monotonic() > deadline:
            raise Trouble(f"{url} does not answer 200: {said}")
        time.sleep(0.02)


class Proxy:
    """The one that stands at the default addresses, as a reader has it who has followed the page so far."""

    def __init__(self):
        self.process = None

    def stand(self):
        if self.process and self.process.poll() is None and answer(f"{ADMIN}/readyz") == "200":
            return
        self.leave()  # a page may have drained it, or have left it in a mode
        log = open(WORK / "proxy.log", "ab")
        self.process = subprocess.Popen(
            [str(WORK / "bin/mongomux"), "run", "--config", "/etc/mongomux/mongomux.toml"],
            stdout=log, stderr=log, cwd=WORK, env=environment(),
        )
        await_url(f"{ADMIN}/readyz", self.process)

    def leave(self):
        """A second signal ends it whatever a page has left open."""
        if not self.process:
            return
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(3)
                except subprocess.TimeoutExpired:
                    continue
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process = None


def mongomux_processes():
    """Every process that is called so: in this namespace those of the block that runs."""
    for stat in Path("/proc").glob("[0-9]*/comm"):
        try:
            if stat.read_text().startswith("mongomux"):
                yield int(stat.parent.name)
        except OSError:
            pass


def fresh_directory(page):
    directory = WORK / "pages" / page.replace("/", "-").removesuffix(".md")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory
