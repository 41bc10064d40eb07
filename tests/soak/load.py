"""The clients: each kind does one thing after the other until it is told to pause, with its own seed.

Those of `KINDS` that use a driver are the well-behaved ones: their sockets are never closed by the proxy, whatever goes wrong upstream.
"""

import gc
import os
import random
import struct
import threading
import time
import uuid

from bson import Binary, Int64
from pymongo import MongoClient, UpdateOne, errors, monitoring
from pymongo.cursor import CursorType
from pymongo.read_preferences import ReadPreference

from wire import ANSWERED_WITHIN, MORE_TO_COME, OP_COMPRESSED, OP_MSG, Gone, Wire

# Documents of each client, which it writes again and again: the data does not grow, so what grows is something else.
OWN = 300
MANY = 2_000
LARGE = 12_000_000


class Cursors:
    """Every cursor that a client has been told of and that has not ended, so that none is left when the load pauses."""

    def __init__(self):
        self._lock = threading.Lock()
        self.open = {}

    def note(self, command, reply):
        with self._lock:
            if isinstance(reply.get("cursor"), dict):
                cursor = reply["cursor"]
                self.open.pop(command.get("getMore"), None)
                if cursor["id"]:
                    self.open[cursor["id"]] = cursor["ns"]
            for killed in reply.get("cursorsKilled", []) + reply.get("cursorsNotFound", []):
                self.open.pop(killed, None)


class Listener(monitoring.CommandListener):
    """Notes the cursors of drivers, and the codes that they see, those that they retry by themselves included."""

    WATCHED = ("getMore", "killCursors")

    def __init__(self, load):
        self.load = load
        self.started_commands = {}

    def started(self, event):
        if event.command_name in self.WATCHED:
            self.started_commands[event.request_id] = event.command

    def succeeded(self, event):
        self.load.cursors.note(self.started_commands.pop(event.request_id, {}), event.reply)
        self.load.counts.add(f"{event.command_name} ok")

    def failed(self, event):
        self.started_commands.pop(event.request_id, None)
        self.load.counts.add(f"{event.command_name} failed")
        self.load.failures.add(str(event.failure.get("codeName") or event.failure.get("errtype") or event.failure))


class Load:
    """One round: clients of all kinds, that come with it and leave with it."""

    def __init__(self, proxy, seed, counts, failures, wrongs, tls):
        self.proxy, self.seed, self.counts, self.failures, self.wrongs = proxy, seed, counts, failures, wrongs
        self.tls = tls
        self.cursors = Cursors()
        self.pause = threading.Event()
        # Orders that are not kind to clients: what these lose then is no fault.
        self.taking_over = threading.Event()
        self.threads = []

    def start(self):
        self.drivers = [
            self.client("soak", compressors=compressors) for compressors in ([], ["snappy"], ["zlib"], ["zstd"])
        ]
        for kind, count in KINDS.items():
            for index in range(count):
                thread = threading.Thread(target=self._work, args=(kind, index), daemon=True)
                self.threads.append(thread)
                thread.start()

    def client(self, application, **options):
        defaults = {
            "appname": application,
            "event_listeners": [Listener(self)],
            "serverSelectionTimeoutMS": 60_000,
            "socketTimeoutMS": ANSWERED_WITHIN * 1_000,
            "connectTimeoutMS": 60_000,
            "maxPoolSize": 50,
        }
        port = options.pop("port", self.proxy.address[1])
        return MongoClient("127.0.0.1", port, **{**defaults, **options})

    def wire(self):
        return Wire(self.proxy.address, self.cursors)

    def _work(self, kind, index):
        random_ = random.Random(f"{self.seed} {kind.__name__} {index}")
        name = f"{kind.__name__}-{index}"
        while not self.pause.is_set():
            began = time.monotonic()
            try:
                kind(self, random_, name)
            except Gone:
                self.counts.add(f"{kind.__name__}: the proxy closed")
                if kind in PROMISED and not self.taking_over.is_set():
                    self.wrongs.append(f"{name}: closed by the proxy")
            except errors.NetworkTimeout as error:
                self.wrongs.append(f"{name}: no answer: {error}")
            except (errors.NotPrimaryError, errors.OperationFailure) as error:
                self.failures.add(f"seen: {error.code}")
            except (errors.ConnectionFailure, OSError) as error:
                self.counts.add(f"{kind.__name__}: a connection lost")
                if kind in PROMISED and not (self.taking_over.is_set() and kind in CLOSED_BY_TAKE_OVER):
                    self.wrongs.append(f"{name}: {type(error).__name__}: {error}")
            except AssertionError as error:
                self.wrongs.append(f"{name}: {error}")
            except errors.PyMongoError as error:
                self.failures.add(f"seen: {type(error).__name__}")
            except Exception as error:  # of this program, and to be told as well
                self.wrongs.append(f"{name}: {type(error).__name__}: {error}")
            self.counts.add(f"turns of {kind.__name__}")
            took = time.monotonic() - began
            self.counts.of["longest turn"] = max(self.counts.get("longest turn"), took)
            self.pause.wait(random_.uniform(0.002, 0.05))

    def stop(self):
        """Ends the turns, then the clients."""
        self.pause.set()
        for thread in self.threads:
            thread.join(2 * ANSWERED_WITHIN)
            if thread.is_alive():
                self.wrongs.append(f"{thread} does not end")
        gc.collect()  # cursors that nobody has any more
        for client in self.drivers:
            client.close()


# --- The well-behaved ---------------------------------------------------------------------------------------------------


def crud(load, random_, name):
    client = random_.choice(load.drivers)
    things = client["soak"]["things"]
    key = f"{name} {random_.randrange(OWN)}"
    pad = "x" * random_.choice((10, 300, 4_000))
    match random_.randrange(14):
        case 0 | 1:
            things.replace_one({"_id": key}, {"owner": name, "n": 0, "pad": pad}, upsert=True)
        case 2 | 3 | 4:
            found = things.find_one({"_id": key})
            assert not found or (found["_id"], found["owner"]) == (key, name), f"{found} instead of {key}"
        case 5:
            things.update_one({"_id": key}, {"$inc": {"n": 1}})
        case 6:
            things.delete_one({"_id": key})
        case 7:
            found = things.find_one_and_update({"_id": key}, {"$inc": {"n": 1}})
            assert not found or found["_id"] == key, f"{found} instead of {key}"
        case 8:
            for one in things.aggregate([{"$match": {"owner": name}}, {"$group": {"_id": "$owner", "n": {"$sum": 1}}}]):
                assert one["_id"] == name, f"{one} instead of {name}"
        case 9:
            assert things.count_documents({"owner": name}) <= OWN
        case 10:
            assert things.distinct("owner", {"owner": name}) in ([], [name])
        case 11:
            updates = [UpdateOne({"_id": f"{name} {i}"}, {"$set": {"owner": name}}, upsert=True) for i in range(20)]
            things.bulk_write(updates, ordered=random_.random() < 0.5)
        case 12:
            near = things.with_options(read_preference=ReadPreference.SECONDARY_PREFERRED)
            for one in near.find({"owner": name}).limit(5):
                assert one["owner"] == name, f"{one} instead of one of {name}"
        case 13:
            # Ends before its time, mostly.
            list(client["soak"]["many"].find({"$where": "sleep(2) || true"}).max_time_ms(5))


def cursors(load, random_, name):
    many = random_.choice(load.drivers)["soak"]["many"]
    cursor = many.find({}, {"n": 1}, batch_size=random_.choice((2, 50, 500)))
    for _ in range(random_.randrange(1, MANY)):
        if next(cursor, None) is None:
            break
    if random_.random() < 0.5:
        cursor.close()


def transactions(load, random_, name):
    client = random_.choice(load.drivers)
    accounts = client["soak"]["accounts"]
    with client.start_session() as session:
        session.start_transaction()
        for _ in range(random_.randrange(1, 5)):
            account = random_.randrange(200)
            accounts.update_one({"_id": account}, {"$inc": {"n": 1}}, upsert=True, session=session)
            accounts.find_one({"_id": account}, session=session)
        if random_.random() < 0.7:
            session.commit_transaction()
        else:
            session.abort_transaction()


def streams(load, random_, name):
    client = random_.choice(load.drivers)
    until = time.monotonic() + random_.uniform(0.5, 4)
    if random_.random() < 0.6:
        with client["soak"]["things"].watch(max_await_time_ms=300) as stream:
            while time.monotonic() < until and stream.alive and not load.pause.is_set():
                stream.try_next()
    else:
        capped = client["soak"]["capped"]
        capped.insert_one({"by": name})
        cursor = capped.find(cursor_type=CursorType.TAILABLE_AWAIT).max_await_time_ms(300)
        while time.monotonic() < until and cursor.alive and not load.pause.is_set():
            next(cursor, None)
        cursor.close()


def large(load, random_, name):
    client = random_.choice(load.drivers)
    documents = client["soak"]["large"]
    count = 3 if random_.random() < 0.1 else 1
    size = 15_400_000 if count == 3 else random_.randrange(100_000, 15_000_000)
    block = random_.randbytes(10_000)
    keys = [f"{name} {index}" for index in range(count)]
    documents.delete_many({"_id": {"$in": keys}})
    documents.insert_many([{"_id": key, "bytes": block * (size // 10_000)} for key in keys])
    found = documents.find_one({"_id": keys[0]})
    assert not found or len(found["bytes"]) == size // 10_000 * 10_000, f"{len(found['bytes'])} bytes of {size}"
    load.pause.wait(2)


def sessions(load, random_, name):
    client = random_.choice(load.drivers)
    with client.start_session() as session:
        cursor = client["soak"]["many"].find(batch_size=10, session=session)
        next(cursor, None)
        ours = [{"id": session.session_id["id"]}]
        what = random_.choice(("refreshSessions", "killSessions", "endSessions"))
        client.admin.command({what: ours})
        for _ in range(30):
            next(cursor, None)
        cursor.close()


def unacknowledged(load, random_, name):
    with load.wire() as wire:
        wire.hello(name)
        for n in range(random_.randrange(1, 20)):
            insert = {"insert": "capped", "documents": [{"by": name, "n": n}], "writeConcern": {"w": 0}}
            wire.send(insert, flags=MORE_TO_COME)
        assert wire.command({"ping": 1})["ok"] in (0, 1)


def elsewhere(load, random_, name):
    """A cursor that goes on over other sockets, as drivers do, and is killed over a third."""
    with load.wire() as first, load.wire() as second, load.wire() as third:
        for wire in (first, second, third):
            wire.hello(name)
        cursor = first.command({"find": "many", "batchSize": 3}).get("cursor")
        for _ in range(random_.randrange(3)):
            if cursor and cursor["id"]:
                more = {"getMore": Int64(cursor["id"]), "collection": "many", "batchSize": 3}
                cursor = random_.choice((second, third)).command(more).get("cursor")
        if cursor and cursor["id"]:
            third.command({"killCursors": "many", "cursors": [Int64(cursor["id"])]})


def visitors(load, random_, name):
    """A driver for one command, by one of many names."""
    with load.client(f"visitor {random_.randrange(5_000)}", maxPoolSize=2) as client:
        client["soak"]["things"].find_one({"_id": name})


def log_ins(load, random_, name):
    """Users of the file, with the right password or a wrong one."""
    right = random_.random() < 0.8
    with load.client(
        "log-in", port=load.proxy.users[1], username="app", password="secret" if right else "wrong", maxPoolSize=2
    ) as client:
        client["soak"]["things"].find_one({"_id": name})
        assert right, "logged in with a wrong password"


def encrypted(load, random_, name):
    with load.client(
        "tls", port=load.proxy.tls[1], tls=True, tlsCAFile=f"{load.tls}/ca.pem", maxPoolSize=2
    ) as client:
        client["soak"]["many"].find_one()
        list(client["soak"]["many"].find(batch_size=200))


# --- Those that are not ------------------------------------------------------------------------------------------------


def leavers(load, random_, name):
    """They go without a word: before they said anything, in a message, while they wait, with a cursor, in a transaction."""
    wire = load.wire()
    leave = random_.choice((wire.close, wire.reset))
    case = random_.randrange(8)
    if case:
        wire.hello(f"leaver {random_.randrange(5_000)}", driver=f"driver {random_.randrange(5_000)}")
    if case == 2:
        whole = wire.message({"insert": "things", "documents": [{"pad": "x" * random_.randrange(100_000)}]})
        wire.socket.sendall(whole[: random_.randrange(1, len(whole))])
    elif case == 3:
        wire.send({"find": "many", "filter": {"$where": "sleep(20) || true"}})
    elif case == 4:
        stream = wire.command({"aggregate": "things", "pipeline": [{"$changeStream": {}}], "cursor": {}})
        if "cursor" in stream:
            wire.send({"getMore": Int64(stream["cursor"]["id"]), "collection": "things", "maxTimeMS": 10_000})
            load.pause.wait(random_.uniform(0, 1))
    elif case == 5:
        wire.command({"find": "many", "batchSize": 2})
    elif case in (6, 7):
        session = {"id": Binary(uuid.UUID(bytes=random_.randbytes(16), version=4).bytes, 4)}
        wire.command(
            {
                "update": "accounts",
                "updates": [{"q": {"_id": random_.randrange(200)}, "u": {"$inc": {"n": 1}}}],
                "lsid": session,
                "txnNumber": Int64(1),
                "startTransaction": True,
                "autocommit": False,
            }
        )
        if case == 7:
            # Its socket is there, and nothing comes: for longer than the proxy lets a transaction be idle.
            load.pause.wait(4)
    leave()


def slow_readers(load, random_, name):
    """They ask for megabytes, and take them slowly, or not at all."""
    wire = load.wire()
    wire.hello(name)
    wire.send({"find": "bulk", "limit": 1, "singleBatch": True})
    until = time.monotonic() + random_.uniform(1, 6)
    wire.socket.settimeout(1)
    try:
        while time.monotonic() < until and not load.pause.is_set():
            if name.endswith("0") or not wire.socket.recv(1 << 16):
                load.pause.wait(0.2)
            load.pause.wait(0.02)
    except TimeoutError:
        pass
    wire.reset()


NONSENSE = (
    b"GET / HTTP/1.1\r\nHost: soak\r\n\r\n",
    bytes.fromhex("1603010200010001fc0303") + bytes(40),
    struct.pack("<iiii", 15, 1, 0, OP_MSG),
    struct.pack("<iiii", 48_000_001, 1, 0, OP_MSG),
    struct.pack("<iiiiiiB", 40, 1, 0, OP_COMPRESSED, OP_MSG, 2_147_483_647, 1) + bytes(15),
    struct.pack("<iiiiIB", 30, 1, 0, OP_MSG, 0, 0) + b"\xff" * 9,
)


def nonsense(load, random_, name):
    """Bytes that are no message, on each port; the proxy closes, or says something, and in the end has forgotten it."""
    address = random_.choice((load.proxy.address, load.proxy.users, load.proxy.tls))
    wire = Wire(address, timeout=5)
    if random_.random() < 0.5:
        what = bytearray(wire.message({"distinct": "many", "key": "n", "query": {"n": {"$lt": 9}}}))
        for _ in range(random_.randrange(1, 6)):
            what[random_.randrange(len(what))] = random_.randrange(256)
    else:
        what = random_.choice(NONSENSE) + random_.randbytes(random_.randrange(50))
    try:
        wire.socket.sendall(what)
        wire.socket.settimeout(random_.uniform(0, 0.5))
        wire.socket.recv(1 << 16)
    except OSError:
        pass
    random_.choice((wire.close, wire.reset))()


# Each with as many at a time.
KINDS = {
    crud: 8,
    cursors: 3,
    transactions: 4,
    streams: 3,
    large: 1,
    sessions: 1,
    unacknowledged: 1,
    elsewhere: 2,
    visitors: 2,
    log_ins: 1,
    encrypted: 1,
    leavers: 4,
    slow_readers: 2,
    nonsense: 2,
}
# Whose sockets stay open whatever goes wrong upstream ...
PROMISED = (
    crud,
    cursors,
    transactions,
    streams,
    large,
    sessions,
    unacknowledged,
    elsewhere,
    visitors,
    log_ins,
    encrypted,
)
# ... but for these, of which more than a socket would have to go to the next process.
CLOSED_BY_TAKE_OVER = (log_ins, encrypted)


def prepare(client):
    """What is read, once."""
    database = client["soak"]
    database["many"].insert_many([{"_id": n, "n": n, "pad": "x" * 100} for n in range(MANY)])
    database["bulk"].insert_one({"_id": 0, "bytes": os.urandom(10_000) * (LARGE // 10_000)})
    database.create_collection("capped", capped=True, size=1 << 20)
    for name in ("things", "accounts", "large"):
        database.create_collection(name)
