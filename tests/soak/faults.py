"""What goes wrong upstream, and what operators and scrapers do meanwhile: one thing after the other, with a seed."""

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time

from pymongo import errors

from scene import DATA, POOL, eventually

# Seconds.
BETWEEN = (1, 6)
STOPPED = (2, 8)


class Director(threading.Thread):
    """Does one of `deeds` after the other until it is told to pause; what it broke it mends before it ends."""

    def __init__(self, name, deeds, between, seed, pause, counts, wrongs):
        super().__init__(name=name, daemon=True)
        self.deeds, self.between, self.pause = deeds, between, pause
        self.counts, self.wrongs = counts, wrongs
        self.random = random.Random(f"{seed} {name}")

    def run(self):
        # Each once in an order that is different each time.
        waiting = []
        while not self.pause.wait(self.random.uniform(*self.between)):
            if not waiting:
                waiting = self.random.sample(self.deeds, len(self.deeds))
            deed = waiting.pop()
            try:
                if deed(self.random) is not False:
                    self.counts.add(f"{self.name}: {deed.__name__}")
            except errors.PyMongoError as error:
                self.counts.add(f"{self.name}: {deed.__name__}: {type(error).__name__}")
            except Exception as error:
                self.wrongs.append(f"{self.name}: {deed.__name__}: {type(error).__name__}: {error}")


class Faults:
    """Of the servers and the network. Each returns when the set is whole again."""

    def __init__(self, members, pause):
        self.members, self.pause = members, pause
        self.cuts = shutil.which("ss") and os.geteuid() == 0

    def deeds(self):
        all_ = [self.step_down, self.kill_primary, self.kill_secondary, self.stop_primary, self.stop_secondary]
        all_ += [self.fail_commands, self.close_connections]
        return all_ + [self.cut_connections] * bool(self.cuts)

    def whole(self):
        return eventually("set that is whole", self.members.healthy)

    def step_down(self, _random):
        self.whole().direct.admin.command({"replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 5, "force": True})
        self.whole()

    def kill_primary(self, random_):
        self._restart(self.whole(), random_)

    def kill_secondary(self, random_):
        self.whole()
        self._restart(random_.choice(self.members.secondaries()), random_)

    def _restart(self, member, random_):
        member.kill()
        self.pause.wait(random_.uniform(0, 4))
        member.start()
        self.whole()

    def stop_primary(self, random_):
        self._stop(self.whole(), random_)

    def stop_secondary(self, random_):
        self.whole()
        self._stop(random_.choice(self.members.secondaries()), random_)

    def _stop(self, member, random_):
        member.signal(signal.SIGSTOP)
        self.pause.wait(random_.uniform(*STOPPED))
        member.signal(signal.SIGCONT)
        self.whole()

    def fail_commands(self, random_):
        """Errors of a server that is about to go, and others."""
        code = random_.choice((91, 189, 11600, 112, 50, 43, 8000))
        self._fail({"errorCode": code}, random_)

    def close_connections(self, random_):
        """In the middle of commands."""
        self._fail({"closeConnection": True}, random_)

    def _fail(self, how, random_):
        commands = ["find", "insert", "update", "getMore", "aggregate", "commitTransaction", "killCursors"]
        data = {"failCommands": random_.sample(commands, 3), "appName": DATA, **how}
        mode = {"times": random_.randrange(1, 20)}
        self.whole().direct.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": data})

    def cut_connections(self, random_):
        """All to one member, idle ones as well."""
        port = random_.choice(self.members.all).port
        subprocess.run(["ss", "-K", "dst", "127.0.0.1", "dport", "=", str(port)], capture_output=True, check=False)

    def mend(self):
        """None of it goes on."""
        for member in self.members.all:
            off = {"configureFailPoint": "failCommand", "mode": "off"}
            eventually("end of what fails", lambda: _worked(member, off))
        return self.whole()


def _worked(member, command):
    try:
        return member.direct.admin.command(command)
    except errors.PyMongoError:
        return None


class Operators:
    """Whoever asks and orders at the admin port."""

    PAGES = ("/", "/livez", "/readyz", "/metrics", "/stats", "/clients", "/clients?list=1", "/history", "/events")
    PAGES += ("/config", "/health/database", "/server", "/nowhere")

    def __init__(self, proxy, counts, wrongs):
        self.proxy, self.counts, self.wrongs = proxy, counts, wrongs

    def scrapes(self):
        return [self.look, self.look, self.look, self.knock]

    def deeds(self):
        return [
            self.reload,
            self.mistake,
            self.pause_and_resume,
            self.reconnect,
            self.clean_up,
            self.trip,
            self.change_mode,
            self.log_more,
            self.kill_leavers,
        ]

    def look(self, random_):
        page = random_.choice(self.PAGES)
        status, body = self.proxy.get(page)
        if status not in (200, 404, 503, 504) or not body:
            self.wrongs.append(f"{page}: {status} {body[:200]!r}")

    def knock(self, random_):
        """Half a request, or none."""
        port = int(self.proxy.admin.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
            one.sendall(b"GET /metrics HTTP/1.1\r\nHost: soak\r\n\r\n"[: random_.randrange(36)])
            time.sleep(random_.uniform(0, 0.3))

    def order(self, path, data=None):
        status, body = self.proxy.get(path, {} if data is None else data)
        if status not in (200, 202, 204):
            self.wrongs.append(f"{path} {data}: {status} {body[:300]!r}")
        return body

    def reload(self, random_):
        self.proxy.write(pool=random_.randrange(3, POOL + 1))
        self.order("/admin/reload")

    def mistake(self, _random):
        """Changes nothing."""
        self.proxy.write(pool=0)
        status, body = self.proxy.get("/admin/reload", {})
        if status != 422:
            self.wrongs.append(f"a configuration that is none: {status} {body[:300]!r}")
        self.proxy.write()
        self.order("/admin/reload")

    def pause_and_resume(self, random_):
        self.order("/admin/pause", {"timeoutMs": 2_000})
        time.sleep(random_.uniform(0, 1))
        self.order("/admin/resume")

    def reconnect(self, _random):
        self.order("/admin/reconnect")

    def clean_up(self, random_):
        self.order("/admin/cleanup", {"mode": random_.choice(("idle", "soft", "hard"))})

    def trip(self, random_):
        server = random_.choice([it["address"] for it in self.proxy.stats()["servers"]] or [None])
        if server is None:
            return False
        for what in ("trip", "reset"):
            status, body = self.proxy.get(f"/admin/breakers/{server}/{what}", {})
            # It may have left the set meanwhile.
            if status not in (200, 404):
                self.wrongs.append(f"{what} {server}: {status} {body[:300]!r}")
        return True

    def change_mode(self, random_):
        self.order("/admin/mode", {"mode": random_.choice(("read-only", "maintenance"))})
        time.sleep(random_.uniform(0, 0.5))
        self.order("/admin/mode", {"mode": "normal"})

    def log_more(self, random_):
        self.order("/admin/log", {"level": "info,mongomux::connection=debug"})
        time.sleep(random_.uniform(0, 0.5))
        self.order("/admin/log", {"level": None})

    def kill_leavers(self, random_):
        self.order("/admin/clients/kill", {"application": f"slow_readers-{random_.randrange(2)}"})

    def mend(self):
        """As at the start."""
        self.proxy.write()
        for path, data in (
            ("/admin/reload", None),
            ("/admin/resume", None),
            ("/admin/mode", {"mode": "normal"}),
            ("/admin/log", {"level": None}),
        ):
            self.order(path, data)
