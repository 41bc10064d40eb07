"""What the soak is about: a replica set of three, the proxy in front of it, and their processes."""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

from pymongo import MongoClient, errors

# Longest wait for a process, an election, or a proxy that is to be ready, seconds.
PATIENCE = 90
SET = "soak"
# What the proxy's data connections call themselves.
DATA = "mongomux"
POOL = 8
LEAST = 2
# Everything that expires does so within a round, so that it is seen to do so.
SETTINGS = f"""
max_pool_size = {{pool}}
min_pool_size = {LEAST}
max_idle_time_ms = 3_000
max_lifetime_ms = 30_000
heartbeat_frequency_ms = 1_000
connect_timeout_ms = 5_000
command_timeout_ms = 20_000
transaction_idle_timeout_ms = 3_000
health_check_ms = 5_000
monitor_interval_ms = 10_000
client_stall_timeout_ms = 4_000
handshake_timeout_ms = 3_000
drain_timeout_ms = 20_000
memory_limit_bytes = 268_435_456
compressors = ["snappy", "zstd", "zlib"]
"""
# What was freed is given back. By itself the C library keeps what large messages have taken, tens of megabytes and a different
# number each time, in which a leak would not be seen for hours.
ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=131072"}
LISTENERS = """
[[listener]]
listen = ["127.0.0.1:{users}"]
auth = "users"
users_file = "{users_file}"

[[listener]]
listen = ["127.0.0.1:{tls}"]
tls = true
tls_certificate_key_file = "{certificate}"
"""


def eventually(what, condition, within=PATIENCE):
    deadline = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {within} s")
        time.sleep(0.1)
    return found


class Member:
    """A mongod that can be killed, and comes back with its data."""

    def __init__(self, program, port, data, log):
        self.port, self.address, self.log = port, f"127.0.0.1:{port}", log
        os.makedirs(data)
        self.command = [
            *(program, "--replSet", SET, "--bind_ip", "127.0.0.1", "--port", str(port), "--dbpath", data),
            *("--logpath", log, "--logappend", "--oplogSize", "256", "--wiredTigerCacheSizeGB", "0.25"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false", "--setParameter", "enableTestCommands=1"),
        ]
        self.process = None
        self.start()
        timeouts = {"serverSelectionTimeoutMS": 3_000, "socketTimeoutMS": 5_000}
        self.direct = MongoClient("127.0.0.1", port, directConnection=True, **timeouts)

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def hello(self):
        try:
            return self.direct.admin.command("hello")
        except errors.PyMongoError:
            return {}


class Members:
    def __init__(self, program, ports, directory, logs):
        self.all = [
            Member(program, port, f"{directory}/db-{port}", f"{logs}/mongod-{port}.log") for port in ports
        ]

    def primary(self):
        return next((member for member in self.all if member.hello().get("isWritablePrimary")), None)

    def secondaries(self):
        return [member for member in self.all if member.hello().get("secondary")]

    def healthy(self):
        """The primary, once all are there."""
        primary = self.primary()
        return primary if primary and len(self.secondaries()) == len(self.all) - 1 else None

    def close(self):
        for member in self.all:
            member.signal(signal.SIGCONT)
            member.kill()


class Proxy:
    """One process after the other, each of which takes over from the one before."""

    def __init__(self, program, uri, ports, directory, logs, tls, users_file):
        self.program, self.uri, self.directory, self.logs = program, uri, directory, logs
        self.address, self.users, self.tls = [("127.0.0.1", port) for port in (ports[0], ports[2], ports[3])]
        self.admin = f"http://127.0.0.1:{ports[1]}"
        self.config = f"{directory}/mongomux.toml"
        self.listeners = LISTENERS.format(
            users=ports[2], users_file=users_file, tls=ports[3], certificate=f"{tls}/server.pem"
        )
        self.arguments = ["--listen", f"127.0.0.1:{ports[0]}", "--admin", f"127.0.0.1:{ports[1]}"]
        self.logged = []
        self.write()
        self.process = self._start()

    def write(self, pool=POOL):
        """The configuration, for the next reload."""
        text = SETTINGS.format(pool=pool) + f'upgrade_socket = "{self.directory}/upgrade.sock"\n' + self.listeners
        with open(self.config + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(self.config + ".new", self.config)

    def _start(self):
        self.logged.append(f"{self.logs}/proxy-{len(self.logged)}.log")
        command = [self.program, "run", "--config", self.config, *self.arguments, self.uri]
        with open(self.logged[-1], "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **ALLOCATOR})

        def ready():
            assert process.poll() is None, f"the proxy ended with {process.returncode}, see {self.logged[-1]}"
            return self.get("/readyz")[0] == 200

        eventually("proxy that is ready", ready)
        return process

    def take_over(self):
        """The next process goes on; returns the exit code of the one before."""
        before = self.process
        self.process = self._start()
        return before.wait(PATIENCE)

    def get(self, path, data=None):
        """Status and body."""
        request = urllib.request.Request(self.admin + path, headers={"X-Mongomux": "1", "Content-Type": "application/json"})
        if data is not None:
            request.data = json.dumps(data).encode()
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except OSError as error:
            return 0, str(error)

    def stats(self):
        return json.loads(self.get("/stats")[1])["clusters"][0]

    def close(self):
        """Its exit code, after a drain."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Counts:
    """How often what has happened."""

    def __init__(self):
        self._lock = threading.Lock()
        self.of = {}

    def add(self, name, count=1):
        with self._lock:
            self.of[name] = self.of.get(name, 0) + count

    def get(self, name):
        return self.of.get(name, 0)
