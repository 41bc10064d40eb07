"""What `tests/drivers/run` needs around the scenarios; each command prints what the script reads.

    stage.py ports N                   free ports
    stage.py initiate SET [--options=OPTIONS] PORT...
                                       makes the mongods there a replica set and waits for its primary; the options
                                       are those of a connection string
    stage.py users URI                 makes the users `root` and `lookup`, with $PASSWORD
    stage.py listening PORT...         waits until somebody listens on each
    stage.py ready URL SECONDS         waits until the URL answers 200
    stage.py census URI LOG LIMIT      the checks of the proxy's connections, as the server saw them
"""

import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request

from pymongo import MongoClient

# What the proxy's data connections call themselves; its monitors have another name.
DATA = "mongomux"


def ports(count):
    print(*free_ports(int(count)))


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    return [s.getsockname()[1] for s in sockets]


def initiate(name, *ports):
    options = ""
    if ports[0].startswith("--options="):
        options = "&" + ports[0].removeprefix("--options=")
        ports = ports[1:]
    members = [{"_id": i, "host": f"127.0.0.1:{port}"} for i, port in enumerate(ports)]
    first = members[0]["host"]
    with MongoClient(f"mongodb://{first}/?directConnection=true&serverSelectionTimeoutMS=20000{options}") as client:
        settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}
        client.admin.command({"replSetInitiate": {"_id": name, "members": members, "settings": settings}})
        deadline = time.monotonic() + 30
        while "primary" not in client.admin.command("hello"):
            if time.monotonic() > deadline:
                sys.exit(f"{name} has no primary within 30 s")
            time.sleep(0.05)


def users(uri):
    """The first may be made by anybody on this machine, and makes the other."""
    password = os.environ["PASSWORD"]
    with MongoClient(uri) as client:
        client.admin.command("createUser", "root", pwd=password, roles=["root"])
    with MongoClient(uri, username="root", password=password) as client:
        everywhere = {"resource": {"db": "", "collection": ""}, "actions": ["viewUser"]}
        client.admin.command("createRole", "lookUpUsers", privileges=[everywhere], roles=[])
        client.admin.command("createUser", "lookup", pwd=password, roles=["lookUpUsers"])


def listening(*ports):
    deadline = time.monotonic() + 20
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(port))).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    sys.exit(f"nobody listens on {port}: {error}")
            time.sleep(0.02)


def ready(url, seconds):
    deadline = time.monotonic() + float(seconds)
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError as error:
            answer = f"{error.code} {error.read().decode(errors='replace').strip()}"
        except OSError as error:
            answer = str(error)
        if time.monotonic() > deadline:
            sys.exit(f"{url} is not ready after {seconds} s: {answer}")
        time.sleep(0.05)


def census(uri, log, limit):
    limit = int(limit)
    with MongoClient(uri, directConnection=True) as client:
        operations = client.admin.aggregate(
            [
                {"$currentOp": {"idleConnections": True, "allUsers": True}},
                {"$match": {"appName": DATA, "connectionId": {"$exists": True}}},
                {"$group": {"_id": "$connectionId"}},
            ]
        )
        now = len(list(operations))
    verdict("upstream_connections", 1 <= now <= limit, f"{now} connections at the end, not 1 to {limit}")
    most, opened = replay(log)
    verdict("upstream_connections_peak", 1 <= most <= limit, f"{most} connections at once, not 1 to {limit}")
    print(f"# data connections: {now} at the end, {most} at most, {opened} opened in all")


def replay(log):
    """The most data connections open at once and how many there were, from the server's log."""
    open_now, most, opened = set(), 0, 0
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            entry = json.loads(line)
            if entry["msg"] == "client metadata":
                if entry["attr"]["doc"].get("application", {}).get("name") == DATA:
                    open_now.add(entry["ctx"])
                    opened += 1
                    most = max(most, len(open_now))
            elif entry["msg"] == "Connection ended":
                open_now.discard(entry["ctx"])
    return most, opened


def verdict(name, good, reason):
    print(f"ok {name}" if good else f"FAIL {name}: {reason}")


if __name__ == "__main__":
    commands = (ports, initiate, users, listening, ready, census)
    {command.__name__: command for command in commands}[sys.argv[1]](*sys.argv[2:])
