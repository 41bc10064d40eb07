"""Mixed load with faults, and a quiet point every few minutes at which nothing may be left of it. See README.md.

    soak.py --mongod PATH --proxy PATH --tls DIRECTORY --users FILE --work DIRECTORY --out DIRECTORY
            [--minutes N] [--round SECONDS] [--seed N]
"""

import argparse
import random
import signal
import sys
import time

from bson import Int64
from pymongo import MongoClient

import load
import quiet
from faults import BETWEEN, Director, Faults, Operators
from scene import POOL, SET, Counts, Members, Proxy, eventually
from stage import free_ports, initiate
from wire import Wire

# Of one process these many quiet points are for warming up: tables fill up to their bounds, the allocator finds its size.
WARM_UP = 2
# What memory may differ between quiet points, kilobytes; README.md says why so much.
MEMORY = 4_096
SLOPE = 128
# A cursor that nobody closes is forgotten after 660 s at most and some.
FORGOTTEN = 720
KEPT = 2
# Cursors that ended with the process before while this one knew of them as well: it forgets them when they expire.
MOVED = 20


class Report:
    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8")
        self.passed, self.failed = 0, 0

    def say(self, text):
        print(text, flush=True)
        print(text, file=self.file, flush=True)

    def check(self, name, wrong):
        """`wrong` is what is, in words, or nothing."""
        self.failed += bool(wrong)
        self.passed += not wrong
        self.say(f"FAIL {name}: {wrong}" if wrong else f"ok {name}")


class Soak:
    def __init__(self, arguments):
        self.arguments = arguments
        self.began = time.monotonic()
        self.report = Report(f"{arguments.out}/report.txt")
        self.series = quiet.Series(f"{arguments.out}/series.csv")
        self.counts, self.failures, self.wrongs = Counts(), Counts(), []
        # When cursors were opened that nobody closes.
        self.kept = []
        self.moved = 0
        self.exits = []
        numbers = free_ports(7)
        self.members = Members(arguments.mongod, numbers[:3], arguments.work, arguments.out)
        eventually("servers that answer", lambda: all(member.hello() for member in self.members.all))
        initiate(SET, *(str(number) for number in numbers[:3]))
        eventually("set that is whole", self.members.healthy)
        uri = f"mongodb://{','.join(it.address for it in self.members.all)}/?replicaSet={SET}"
        with MongoClient(uri, w="majority") as client:
            load.prepare(client)
        self.proxy = Proxy(arguments.proxy, uri, numbers[3:], arguments.work, arguments.out, arguments.tls, arguments.users)

    def now(self):
        return time.monotonic() - self.began

    def round(self, number, until, take_over):
        seed = f"{self.arguments.seed} {number}"
        clients = load.Load(self.proxy, seed, self.counts, self.failures, self.wrongs, self.arguments.tls)
        faults = Faults(self.members, clients.pause)
        operators = Operators(self.proxy, self.counts, self.wrongs)
        clients.start()
        directors = [
            Director("fault", faults.deeds(), BETWEEN, seed, clients.pause, self.counts, self.wrongs),
            Director("order", operators.deeds(), (1, 4), seed, clients.pause, self.counts, self.wrongs),
            Director("asked", operators.scrapes(), (0.05, 0.3), seed, clients.pause, self.counts, self.wrongs),
        ]
        for director in directors:
            director.start()
        if take_over:
            time.sleep((until - self.now()) / 3)
            clients.taking_over.set()
            self.exits.append(self.proxy.take_over())
            self.report.say(f"# {self.now():.0f} s: the next process has taken over, the one before ended with {self.exits[-1]}")
            clients.taking_over.clear()
        time.sleep(max(0, until - self.now()))
        clients.pause.set()
        for director in directors:
            director.join()
        faults.mend()
        operators.mend()
        clients.stop()
        if take_over:
            self.moved = MOVED
        self.quiet(number, clients)

    def quiet(self, number, clients):
        """Nobody is there; cursors that nobody closed are killed, all but a few."""
        left = clients.cursors.open
        self.report.say(f"# {len(left)} cursors of clients are to be killed")
        with Wire(self.proxy.address, clients.cursors) as wire:
            wire.hello(quiet.KEEPER)
            for cursor, namespace in list(left.items()):
                collection = namespace.split(".", 1)[1]
                wire.command({"killCursors": collection, "cursors": [Int64(cursor)]})
            for _ in range(KEPT if len(self.kept) < 3 * KEPT else 0):
                wire.command({"find": "many", "batchSize": 2})
                self.kept.append(self.now())
        kept = sum(self.now() - since < FORGOTTEN for since in self.kept)
        found, took = quiet.settle(self.proxy, self.members, kept + self.moved)
        self.report.check(f"round {number}: nothing is left over", found and "; ".join(found))
        wrongs, self.wrongs[:] = list(self.wrongs), []
        self.report.check(f"round {number}: every command was answered, on a socket that stayed open", "; ".join(wrongs[:20]))
        bad = [line for log in self.proxy.logged for line in quiet.bad_lines(log)]
        self.report.check(f"round {number}: no error in the log", "; ".join(bad[:5]))
        now = quiet.metrics(self.proxy)
        self.moved = min(self.moved, max(0, int(now['mongomux_pins{kind="cursor"}']) - kept))
        commands = sum(value for name, value in now.items() if name.startswith("mongomux_commands_total"))
        created = sum(value for name, value in now.items() if name.startswith("mongomux_upstream_connections_created_total"))
        row = {
            "seconds": round(self.now()),
            "round": number,
            "process": len(self.proxy.logged),
            **quiet.process(self.proxy.process.pid),
            "settled_after": round(took, 1),
            "kept_cursors": int(now['mongomux_pins{kind="cursor"}']),
            "clients_so_far": int(now["mongomux_client_connections_opened_total"]),
            "commands_so_far": int(commands),
            "connections_so_far": int(created),
        }
        self.series.add(row)
        self.report.say("# " + ", ".join(f"{name} {value}" for name, value in row.items()))

    def flat(self):
        """Over the quiet points of the last process, once it was warm."""
        rows = [row for row in self.series.rows if row["process"] == len(self.proxy.logged)]
        warm, later = rows[:WARM_UP], rows[WARM_UP:]
        if not later:
            self.report.say("# too short to tell whether memory is flat")
            warm, later = rows[:1], rows[1:]
        for name in ("files", "sockets"):
            most = max(row[name] for row in warm)
            grown = [row[name] for row in later if row[name] > most]
            self.report.check(f"{name} are flat", grown and f"{[row[name] for row in rows]}")
        if len(rows) <= WARM_UP:
            return
        for name in ("anonymous_kb", "rss_kb"):
            most, values = max(row[name] for row in warm), [row[name] for row in rows]
            grown = max(row[name] for row in later) - most
            self.report.check(f"{name} is flat", grown > MEMORY and f"grown by {grown}, more than {MEMORY}: {values}")
        if len(later) >= 4:
            rise = quiet.slope([(row["seconds"] / 60, row["anonymous_kb"]) for row in rows[1:]])
            self.report.check("memory does not rise", rise > SLOPE and f"{rise:.0f} KB a minute, more than {SLOPE}")
            self.report.say(f"# memory rises by {rise:.1f} KB a minute")

    def run(self):
        number = 0
        while number < 2 or self.now() + self.arguments.round / 2 < self.arguments.minutes * 60:
            number += 1
            self.round(number, self.now() + self.arguments.round, take_over=number == 1)
        self.flat()
        for member in self.members.all:
            most, when, opened = quiet.census(member.log)
            says = f"{most} data connections at once, at {when}; {opened} in all"
            self.report.check(f"{member.address} has seen no more connections than two pools", most > 2 * POOL and says)
            self.report.say(f"# {member.address} had {says}")
        code = self.proxy.close()
        self.report.check("the drain ends cleanly", code and f"exit code {code}")
        # 3 where a transaction was open whose client had left without a word a moment before.
        self.report.check("so did the process before", any(it not in (0, 3) for it in self.exits) and f"exit codes {self.exits}")
        for counts in (self.counts, self.failures):
            for name, value in sorted(counts.of.items(), key=lambda it: str(it[0])):
                self.report.say(f"# {name}: {value if isinstance(value, int) else round(value, 1)}")
        self.report.say(f"\n{self.report.passed} passed, {self.report.failed} failed after {self.now():.0f} s, seed {self.arguments.seed}")

    def close(self):
        self.proxy.process.kill()
        self.members.close()


def main():
    parser = argparse.ArgumentParser()
    for name in ("mongod", "proxy", "tls", "users", "work", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--round", type=float, default=120)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"# seed {arguments.seed}, output in {arguments.out}", flush=True)
    soak = Soak(arguments)
    try:
        soak.run()
    finally:
        soak.close()
    sys.exit(0 if soak.report.passed and not soak.report.failed else 1)


if __name__ == "__main__":
    main()
