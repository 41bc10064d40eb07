"""What must hold when the load pauses: everything that was taken has been given back. And what is measured then, for the series."""

import csv
import json
import os
import re
import time

from scene import DATA, LEAST, POOL

# Who has cursors that stay, on purpose.
KEEPER = "keeper of cursors"
# Longest wait until all is back. What takes longest by itself are threads that have nothing to do, 10 s, and transactions whose
# client has gone, 5 s; the rest is for a machine that is busy.
WITHIN = 90
# Those for work that blocks end when there was none for ten seconds.
THREADS = 1
# Metrics that are 0 when nothing goes on.
ZERO = (
    r"client_connections\{",
    r"client_connections_surplus$",
    r'upstream_connections\{.*state="(in_use|pending)"',
    r"own_connections\{",
    r"wait_queue_length\{",
    r"wait_queue_oldest_seconds$",
    r"wait_queue_bytes$",
    r"buffered_bytes$",
    r"breaker_state\{",
    r'pins\{kind="transaction"',
    r'long_held\{what="(command|transaction)"',
)
# Lines of a log that nobody wants to see, and the one that is asked for: a configuration with a mistake in it.
BAD = re.compile(r" ERROR |panicked")
ASKED_FOR = "the configuration stays as it was"


def metrics(proxy):
    _, body = proxy.get("/metrics")
    lines = (line.rsplit(" ", 1) for line in body.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def leftovers(proxy, members, kept):
    """What is not as it was before any load, in words; `kept` cursors may be there."""
    found = []
    now = metrics(proxy)
    stats = json.loads(proxy.get("/stats")[1])
    cluster = stats["clusters"][0]
    for pattern in ZERO:
        series = {name: value for name, value in now.items() if re.match(f"mongomux_{pattern}", name)}
        if not series:
            found.append(f"there is no {pattern}")
        found += [f"{name} is {value:g}" for name, value in series.items() if value]
    pins = now.get('mongomux_pins{kind="cursor"}', -1)
    if not 0 <= pins <= kept:
        found.append(f"{pins:g} cursors are pinned, not {kept} at most")
        held = [it for server in cluster["servers"] for it in server["longHeld"]["items"]]
        found += [f"held for long: {it}" for it in held if it.get("application") != KEEPER]
    found += unequal("", stats, {"surplusClients": 0, "draining": False})
    found += unequal("memory.", stats["memory"], {"usedBytes": 0})
    found += unequal("", cluster, {"mode": "normal", "paused": [], "closing": 0, "clients": 0, "problem": None})
    if len(cluster["servers"]) != len(members.all):
        found.append(f"{len(cluster['servers'])} servers of {len(members.all)}")
    for server in cluster["servers"]:
        name = server["address"] + " "
        found += unequal(name, server, {"closing": 0, "max": POOL, "idle": LEAST, "active": 0, "pending": 0, "limit": POOL})
        for lane in server["lanes"]:
            found += unequal(f"{name}{lane['lane']} ", lane, {"active": 0, "waiting": 0})
        for tenant in server["tenants"]:
            found += unequal(f"{name}{tenant['name']} ", tenant, {"active": 0, "waiting": 0})
    clients = json.loads(proxy.get("/clients?list=1")[1])
    found += unequal("clients: ", clients, {"total": 0, "otherClients": 0})
    threads = len(os.listdir(f"/proc/{proxy.process.pid}/task"))
    if threads > THREADS:
        found.append(f"{threads} threads, not {THREADS}")
    for member in members.all:
        theirs = connections(member)
        if theirs != LEAST:
            found.append(f"{member.address} has {theirs} data connections of the proxy, not {LEAST}")
    return found


def unequal(what, found, wanted):
    return [f"{what}{key} is {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]


def connections(member):
    """Data connections of the proxy, as the server counts them."""
    operations = member.direct.admin.aggregate(
        [
            {"$currentOp": {"idleConnections": True, "allUsers": True}},
            {"$match": {"appName": DATA, "connectionId": {"$exists": True}}},
            {"$group": {"_id": "$connectionId"}},
        ]
    )
    return len(list(operations))


def settle(proxy, members, kept):
    """Waits until nothing is left over; returns what still is, and how long it took."""
    began = time.monotonic()
    while True:
        try:
            found = leftovers(proxy, members, kept)
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        took = time.monotonic() - began
        if not found or took > WITHIN:
            return found, took
        time.sleep(0.5)


def process(pid):
    """Kilobytes, files and threads of a process."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        memory = dict(re.findall(r"^(\w+): +(\d+) kB", lines.read(), re.MULTILINE))
    files = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            files.append(re.sub(r":.*|\d+", "", os.readlink(f"/proc/{pid}/fd/{fd}")))
        except OSError:
            continue
    return {
        "rss_kb": int(memory["Rss"]),
        "pss_kb": int(memory["Pss"]),
        "anonymous_kb": int(memory["Pss_Anon"]),
        "files": len(files),
        "sockets": files.count("socket"),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


class Series:
    """One row for each quiet point, in a file as well."""

    def __init__(self, path):
        self.path, self.rows = path, []

    def add(self, row):
        self.rows.append(row)
        with open(self.path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)


def slope(points):
    """Of the line through them, by least squares."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    square = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / square


def bad_lines(log):
    with open(log, encoding="utf-8", errors="replace") as lines:
        return [line.strip() for line in lines if BAD.search(line) and ASKED_FOR not in line]


def census(log):
    """The most data connections that were open at once in the eyes of the server, and when; by its log."""
    open_now, most, when, opened = set(), 0, None, 0
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["msg"] == "***** SERVER RESTARTED *****":
                open_now.clear()
            elif entry["msg"] == "client metadata":
                if entry["attr"]["doc"].get("application", {}).get("name") == DATA:
                    open_now.add(entry["ctx"])
                    opened += 1
                    if len(open_now) > most:
                        most, when = len(open_now), entry["t"]["$date"]
            elif entry["msg"] == "Connection ended":
                open_now.discard(entry["ctx"])
    return most, when, opened
