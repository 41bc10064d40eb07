"""The director of `tests/drivers/trouble`: makes trouble upstream while a real driver works, and holds what the driver
was told, what its application saw and what it noticed against the table in `expectations`.

    trouble.py --mongod PORT --set PORT,... --proxy NAME:PORT:ADMIN:RELAY... --driver NAME=COMMAND... [--only REGEX]

One line per check, `ok DRIVER SITUATION OPERATION` or `FAIL ...: why`, and a summary. Exit code 0 when all is ok.
"""

import argparse
import json
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import namedtuple

from pymongo import MongoClient, errors

import table
from relay import Fault, Loop, Relay
from stage import ready

# Longest silence of a driver, and longest wait for anything else, seconds.
PATIENCE = 30
# What the proxy's data connections call themselves.
DATA = "mongomux"


def eventually(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {PATIENCE} s")
        time.sleep(0.01)
    return found


# --- The operations -------------------------------------------------------------------------------------------------

# The command that the trouble is aimed at, and what the operation leaves behind when it is carried out once: increments
# of its document, documents inserted. None where that is open.
Operation = namedtuple("Operation", "command things inserts")
OPERATIONS = {
    "find": Operation("find", 0, 0),
    "find_in_time": Operation("find", 0, 0),
    "insert": Operation("insert", 0, 1),
    "update_one": Operation("update", 1, 0),
    "update_many": Operation("update", 1, 0),
    "command": Operation("update", 1, 0),
    "get_more": Operation("getMore", 0, 0),
    "change_stream": Operation("getMore", 0, None),
    "first_statement": Operation("insert", 0, 1),
    "statement": Operation("insert", 1, 1),
    "commit": Operation("commitTransaction", 1, 1),
    "abort": Operation("abortTransaction", 0, None),
    "unacknowledged": Operation("insert", 0, None),
    "ping": Operation("ping", 0, 0),
    "hello": Operation("hello", 0, 0),
    "large_insert": Operation("insert", 0, 1),
    "large_command": Operation("insert", 0, 1),
    "large_statement": Operation("insert", 1, 1),
    "large_unacknowledged": Operation("insert", 0, None),
}


# --- The troubles ---------------------------------------------------------------------------------------------------


class Trouble:
    """Begins for one command name, for the next time only or until lifted."""

    # The proxy in front of which it happens.
    proxy = "plain"
    # Whether a write that ended with an error was executed.
    executed = False

    def __init__(self, stage, argument):
        self.stage = stage
        self.argument = argument
        self.relay = stage.proxies[self.proxy].relay

    def begin(self, command, once):
        raise NotImplementedError

    def lift(self):
        """Ends it and returns how often it was met."""
        raise NotImplementedError


class FailPoint(Trouble):
    """The server fails the command before it runs."""

    def data(self):
        return {"errorCode": int(self.argument)}

    def begin(self, command, once):
        data = {"failCommands": [command], "appName": DATA, **self.data()}
        mode = {"times": 1} if once else "alwaysOn"
        self.stage.admin({"configureFailPoint": "failCommand", "mode": mode, "data": data})

    def lift(self):
        return self.stage.admin({"configureFailPoint": "failCommand", "mode": "off"})["count"]


class Labelled(FailPoint):
    """An error with labels of its own: an overload answer of a newer server, say."""

    def data(self):
        code, letters = re.fullmatch(r"(\d+)(\w*)", self.argument).groups()
        return {"errorCode": int(code), "errorLabels": table.labels(letters)}


class Closed(FailPoint):
    def data(self):
        return {"closeConnection": True}


class Concern(FailPoint):
    """Executed, and perhaps not to last."""

    executed = True

    def data(self):
        # The text is one by which old drivers recognise a state change.
        return {"writeConcernError": {"code": int(self.argument), "errmsg": "not master or node is recovering"}}


class Relayed(Trouble):
    """The connection misbehaves."""

    @property
    def executed(self):
        return self.argument != "cut_request"

    def begin(self, command, once):
        self.relay.fault(command, Fault[self.argument.upper()], 1 if once else None)

    def lift(self):
        self.relay.forget()
        met = self.relay.met()
        # Too many failures in a row would open the breaker.
        works(self.stage.proxies[self.proxy])
        return met


class Retried(Relayed):
    """The same, where the proxy sends again itself what is safe."""

    proxy = "retrying"


class RetriedError(FailPoint):
    proxy = "retrying"


class TooSlow(Relayed):
    """No answer within `command_timeout_ms`."""

    proxy = "hurried"


class Busy(Trouble):
    """The only connection is in use, by commands of others that the server holds; some may wait behind it."""

    waiting = 0

    def begin(self, command, once):
        proxy = self.stage.proxies[self.proxy]
        self.relay.fault("count", Fault.HOLD)
        self.others = []
        for waiting in range(self.waiting + 1):
            other = threading.Thread(target=quietly, args=(proxy, {"count": "things"}), daemon=True)
            other.start()
            self.others.append(other)
            eventually("busy connection", lambda: self.relay.holds and proxy.waiting() == waiting)

    def queued(self):
        """Whether the driver's command waits, too."""
        return self.stage.proxies[self.proxy].waiting() > self.waiting

    def lift(self):
        self.relay.forget()
        for other in self.others:
            other.join()
        return self.relay.met()


class QueueFull(Busy):
    """One command waits, which is all that may."""

    proxy = "queue"
    waiting = 1


class QueueTimeout(Busy):
    """Waiting takes `wait_queue_timeout_ms`."""

    proxy = "impatient"


class Unreachable(Trouble):
    """Monitoring passes, and no data connection can be made."""

    proxy = "cut_off"

    def begin(self, command, once):
        self.relay.shut()

    def lift(self):
        self.relay.open()
        proxy = self.stage.proxies[self.proxy]
        eventually("connection", lambda: works(proxy))
        return self.relay.met()


class ReachedAgain(Unreachable):
    """The same, and a command waits long enough for the connections to come back."""

    proxy = "patient"


class BreakerOpen(Unreachable):
    """So many have failed that nothing is tried any more."""

    proxy = "breaker"

    def begin(self, command, once):
        super().begin(command, once)
        proxy = self.stage.proxies[self.proxy]

        def is_open():
            works(proxy)
            return [server["breaker"] for server in proxy.servers()] == ["open"]

        eventually("open breaker", is_open)


class NoPrimary(Trouble):
    """The only member has stepped down, and nobody else can be elected."""

    proxy = "set"

    def begin(self, command, once):
        proxy = self.stage.proxies[self.proxy]
        self.stage.admin({"replSetStepDown": 60, "force": True})
        eventually("set without primary", lambda: proxy.stats()["status"] == "down")

    def lift(self):
        self.stage.admin({"replSetFreeze": 0})
        eventually("primary", lambda: self.stage.admin("hello")["isWritablePrimary"])
        for proxy in self.stage.proxies.values():
            eventually("primary behind the proxy", lambda: works(proxy))
        # A server has no count of those who did not come.
        return 1


TROUBLES = {
    "error": FailPoint,
    "labelled": Labelled,
    "closed": Closed,
    "concern": Concern,
    "relay": Relayed,
    "retried": Retried,
    "retried_error": RetriedError,
    "too_slow": TooSlow,
    "queue_full": QueueFull,
    "queue_timeout": QueueTimeout,
    "unreachable": Unreachable,
    "reached_again": ReachedAgain,
    "breaker_open": BreakerOpen,
    "no_primary": NoPrimary,
}


def works(proxy):
    return quietly(proxy, {"update": "probes", "updates": [{"q": {"_id": 1}, "u": {"$inc": {"n": 1}}}]})


def quietly(proxy, command):
    """Whether the command succeeded."""
    try:
        proxy.client.trouble.command(command)
        return True
    except errors.PyMongoError:
        return False


# --- The stage ------------------------------------------------------------------------------------------------------


class Proxy:
    """A proxy with its relay, and a client of the director's own."""

    def __init__(self, loop, mongod, words):
        self.name, port, admin, relay = words.split(":")
        self.uri = f"mongodb://127.0.0.1:{port}/"
        self.admin = f"http://127.0.0.1:{admin}"
        self.relay = Relay(loop, int(relay), mongod)
        self.client = MongoClient(self.uri, retryReads=False, retryWrites=False)

    def stats(self):
        with urllib.request.urlopen(f"{self.admin}/stats", timeout=PATIENCE) as answer:
            return json.load(answer)["clusters"][0]

    def servers(self):
        """Those that take commands: none while one changes its state."""
        return self.stats()["servers"]

    def waiting(self):
        return self.stats()["waitQueue"]["length"]


class Stage:
    def __init__(self, arguments):
        loop = Loop()
        self.direct = MongoClient(f"mongodb://127.0.0.1:{arguments.mongod}/?directConnection=true")
        self.set = [int(port) for port in arguments.set.split(",")]
        self.proxies = {}
        for words in arguments.proxy:
            proxy = Proxy(loop, arguments.mongod, words)
            self.proxies[proxy.name] = proxy
        for proxy in self.proxies.values():
            ready(f"{proxy.admin}/readyz", PATIENCE)
        self.db = self.direct["trouble"]
        self.db["many"].insert_many({"_id": i} for i in range(6))
        self.db.create_collection("inserts")

    def admin(self, command):
        return self.direct.admin.command(command)


class Actor:
    """One driver at work, as a process."""

    def __init__(self, name, command, proxies):
        self.name = name
        self.process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        for proxy in proxies:
            self.say(client=proxy.name, uri=proxy.uri)

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put({"event": "ended"})

    def say(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self, timeout=PATIENCE):
        """The next event; None after `timeout` seconds without one."""
        try:
            event = self.lines.get(timeout=timeout)
        except queue.Empty:
            return None
        if event["event"] == "ended":
            raise AssertionError("the driver's process has ended")
        return event

    def hear_until(self, last, heard):
        """Appends events to `heard` until one of this name, which is returned."""
        while True:
            event = self.hear()
            assert event, f"nothing heard of the driver for {PATIENCE} s, waiting for {last!r}"
            if event["event"] == last:
                return event
            assert event["event"] != "done", f"it ended before the trouble began: {event}"
            heard.append(event)

    def close(self):
        """Asks it to leave; returns what it still had to say."""
        heard = []
        self.say(close=True)
        self.hear_until("done", heard)
        self.process.wait(PATIENCE)
        return heard

    def kill(self):
        self.process.kill()
        self.process.wait()


# --- The checks -----------------------------------------------------------------------------------------------------


class Report:
    def __init__(self):
        self.passed, self.failed = 0, 0

    def check(self, name, verify):
        """Runs one check; returns whether it went well."""
        try:
            verify()
        except Exception as error:
            self.failed += 1
            print(f"FAIL {name}: {' '.join(f'{type(error).__name__}: {error}'.split()):.600}", flush=True)
            return False
        self.passed += 1
        print(f"ok {name}", flush=True)
        return True


def calm(events):
    """Nothing that no driver may ever notice."""
    noticed = [event for event in events if event["event"] != "told"]
    assert not noticed, f"noticed {noticed}"


def run_cell(stage, actor, trouble, duration, line, ident):
    operation = OPERATIONS[line.operation]
    expected = line.others.get(actor.name, line.cell).of(trouble.argument)
    stage.db["things"].insert_one({"_id": ident, "n": 0})
    before, events = [], []
    actor.say(operation=line.operation, on=trouble.proxy, id=ident)
    actor.hear_until("ready", before)
    met = None
    try:
        trouble.begin(operation.command, duration == "once")
        actor.say(go=True)
        if duration == "until queued":
            eventually("waiting command", trouble.queued)
            met = trouble.lift()
        while not events or events[-1]["event"] != "done":
            event = actor.hear()
            assert event, f"nothing heard of the driver for {PATIENCE} s after {events[-5:]}"
            events.append(event)
            if met is None and duration == "until told" and event.get("kind") == "error":
                met = trouble.lift()
    finally:
        met = trouble.lift() if met is None else met
    done = events.pop()
    told = collapse(table.attempt(it) for it in events if it["event"] == "told" and it["command"] == operation.command)
    calm(before + events)
    assert table.matches(expected.attempts, told), (
        f"told {' '.join(told) or 'nothing'}, not {' '.join(expected.attempts)}; the application saw {done['error']}"
    )
    seen = expected.seen or re.match(r"(?:concern)?(ok|\d+)", expected.attempts[-1])[1]
    if seen == "ok":
        assert not done["error"], f"the application saw {done['error']}"
    else:
        assert done["error"] and str(done["error"]["code"]) == seen, f"the application saw {done['error']}, not {seen}"
    assert expected.runs in (None, str(done.get("runs"))), f"the callback ran {done.get('runs')} times"
    assert met or operation.command == "hello", "the trouble was not met"
    effects(stage, operation, not done["error"] or trouble.executed, expected.done, ident)


def collapse(told):
    """A row of good answers, as those of a cursor, counts as one."""
    row = []
    for it in told:
        if not (row and row[-1] == it == "ok"):
            row.append(it)
    return row


def effects(stage, operation, executed, done, ident):
    """Exactly once, or not at all."""
    n = stage.db["things"].find_one({"_id": ident})["n"]
    inserted = stage.db["inserts"].count_documents({"_id": ident})
    for what, found, wanted in (("increments", n, operation.things), ("inserts", inserted, operation.inserts)):
        if wanted is not None:
            wanted *= executed
        elif done is not None:
            wanted = int(done)
        assert wanted in (None, found), f"{found} {what}, not {wanted}"


def matrix(stage, report, name, command, sections, only):
    """All cells with one driver. One that went wrong gets a new process: the old one may hang, or have no pool left."""
    actor = None
    number = 0
    try:
        for section in sections:
            for argument in section.arguments or [None]:
                trouble = TROUBLES[section.trouble](stage, argument)
                for line in section.lines:
                    situation = " ".join(filter(None, [section.trouble, argument, section.duration]))
                    check = f"{name} {situation}: {line.operation}"
                    if only and not re.search(only, check):
                        continue
                    actor = actor or Actor(name, command, stage.proxies.values())
                    number += 1
                    ident = f"{name} {number}"
                    cell = lambda: run_cell(stage, actor, trouble, section.duration, line, ident)
                    if not report.check(check, cell):
                        actor.kill()
                        actor = None
        if actor:
            report.check(f"{name} calm to the end", lambda: calm(actor.close()))
    finally:
        if actor:
            actor.kill()


def step_down(stage, report, name, command):
    """Thirty workers, and the primary steps down twice."""
    proxy = stage.proxies["three"]
    uri = ",".join(f"127.0.0.1:{port}" for port in stage.set)
    actor = Actor(name, command, [proxy])
    heard = []
    try:
        with MongoClient(f"mongodb://{uri}/?replicaSet=rs1&w=majority") as client:
            ledger = client["trouble"]["ledger"]
            ledger.drop()

            def traffic():
                before = ledger.estimated_document_count()
                eventually("traffic", lambda: ledger.estimated_document_count() >= before + 200)

            actor.say(operation="load", on="three", id="load")
            actor.hear_until("ready", heard)
            for _ in range(2):
                traffic()
                primary = client.admin.command("hello")["me"]
                client.admin.command({"replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 5, "force": True})
                eventually("next primary", lambda: client.admin.command("hello")["me"] != primary)
            traffic()
            actor.say(go=True)
            done = actor.hear_until("done", heard)

            def complete():
                seen = done["error"] or done["errors"]
                assert not seen, f"the application saw {seen}"
                found = ledger.aggregate([{"$group": {"_id": "$worker", "n": {"$sum": 1}, "last": {"$max": "$n"}}}])
                found = {it["_id"]: (it["n"], it["last"] + 1) for it in found}
                wanted = {worker: (n, n) for worker, n in enumerate(done["acknowledged"]) if n}
                assert found == wanted, f"the ledger has {found}, acknowledged were {wanted}"
                assert min(done["acknowledged"]) > 0, "a worker did nothing"

            report.check(f"{name} step-down under load: nothing lost, nothing seen", complete)
            print(f"# {sum(done['acknowledged'])} inserts, {done['retried']} attempts failed and were retried")
            heard += actor.close()
            report.check(f"{name} step-down under load: nothing noticed", lambda: calm(heard))
    finally:
        actor.kill()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mongod", type=int, required=True)
    parser.add_argument("--set", required=True)
    parser.add_argument("--proxy", action="append", required=True)
    parser.add_argument("--driver", action="append", required=True)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    # So that whoever is asked to end takes the drivers along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sections = table.read()
    stage = Stage(arguments)
    report = Report()
    began = time.monotonic()
    for driver in arguments.driver:
        name, command = driver.split("=", 1)
        print(f"== {name}", flush=True)
        matrix(stage, report, name, command, sections, arguments.only)
        if re.search(arguments.only, f"{name} step-down under load"):
            step_down(stage, report, name, command)
    print(f"\n{report.passed} passed, {report.failed} failed after {time.monotonic() - began:.0f} s")
    sys.exit(0 if report.passed and not report.failed else 1)


if __name__ == "__main__":
    main()
