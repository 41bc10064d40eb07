"""pymongo in trouble: carries out one operation after the other, and tells everything that it noticed meanwhile.

Told by `trouble.py` over standard input, one JSON line each; the answers are JSON lines on standard output:

    {"client": NAME, "uri": URI}                   a MongoClient of that name
    {"operation": NAME, "on": CLIENT, "id": ID}    prepares it, says {"event": "ready"} and waits for the next line
    {"go": true}                                   carries it out; ends with {"event": "done", "error": ERROR or null}

Meanwhile {"event": "told", ...} for each answer to a command, as the driver's listeners report it, and one line for what
must never happen: `pool_cleared`, `server_lost`, `socket_closed`. `actor.mjs` does the same.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pymongo import MongoClient, WriteConcern, errors, monitoring

LARGE = 12 * 1024 * 1024
WORKERS = 30
# How long a change stream waits at a time, ms.
AWAIT = 100
OUT = threading.Lock()


def tell(event, **fields):
    with OUT:
        print(json.dumps({"event": event, **fields}), flush=True)


def heard():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)


class Ears(monitoring.CommandListener, monitoring.ConnectionPoolListener, monitoring.ServerListener):
    """What one client notices."""

    def __init__(self, name):
        self.name = name
        self.closing = False
        self.retried = 0
        # Under load only trouble is told.
        self.loaded = False

    def started(self, event):
        pass

    def succeeded(self, event):
        reply = event.reply
        concern = reply.get("writeConcernError") or {}
        self.told(event, concern.get("code"), reply.get("errorLabels", []), "concern")

    def failed(self, event):
        failure = event.failure
        self.told(event, failure.get("code"), failure.get("errorLabels", []), "error")

    def told(self, event, code, labels, kind):
        if self.loaded:
            self.retried += kind == "error"
            return
        failed = kind == "error" or code is not None
        tell("told", command=event.command_name, kind=kind if failed else "ok", code=code, labels=labels)

    def opened(self, event):
        pass

    def description_changed(self, event):
        if not self.closing and event.previous_description.server_type_name != "Unknown":
            if event.new_description.server_type_name == "Unknown":
                tell("server_lost", client=self.name, why=repr(event.new_description.error))

    def pool_cleared(self, event):
        # Old releases clear a pool to close it.
        if not self.closing:
            tell("pool_cleared", client=self.name)

    def connection_closed(self, event):
        if not self.closing:
            tell("socket_closed", client=self.name, why=event.reason)

    def closed(self, event):
        pass

    def nothing(self, event):
        pass

    pool_created = pool_ready = pool_closed = nothing
    connection_created = connection_ready = nothing
    connection_check_out_started = connection_check_out_failed = nothing
    connection_checked_out = connection_checked_in = nothing


class Operation:
    """What one operation needs. `go` marks where the trouble begins; callbacks that start over do not wait again."""

    def __init__(self, client, ears, ident):
        self.client, self.ears, self.id = client, ears, ident
        self.db = client["trouble"]
        self.things = self.db["things"]
        self.gone = False
        self.cleanup = None
        self.facts = {}

    def go(self):
        if not self.gone:
            self.gone = True
            tell("ready")
            heard()

    def increment(self):
        return {"$inc": {"n": 1}}

    def in_transaction(self, callback):
        runs = 0

        def counted(session):
            nonlocal runs
            runs += 1
            self.facts["runs"] = runs
            return callback(session)

        with self.client.start_session() as session:
            session.with_transaction(counted)

    # --- the operations ---

    def find(self):
        self.go()
        found = self.things.find_one({"_id": self.id})
        assert found["n"] == 0, found

    def find_in_time(self):
        self.go()
        list(self.things.find({"_id": self.id}).max_time_ms(100))

    def insert(self):
        self.go()
        self.db["inserts"].insert_one({"_id": self.id})

    def update_one(self):
        self.go()
        self.things.update_one({"_id": self.id}, self.increment())

    def update_many(self):
        self.go()
        self.things.update_many({"_id": self.id}, self.increment())

    def command(self):
        self.go()
        self.db.command("update", "things", updates=[{"q": {"_id": self.id}, "u": self.increment()}])

    def get_more(self):
        cursor = self.db["many"].find({}, batch_size=2).sort("_id")
        self.cleanup = cursor.close
        found = [next(cursor)["_id"] for _ in range(2)]
        self.go()
        found += [document["_id"] for document in cursor]
        assert found == list(range(6)), found

    def change_stream(self):
        stream = self.db["inserts"].watch([{"$match": {"documentKey._id": self.id}}], max_await_time_ms=AWAIT)
        self.cleanup = stream.close
        # It waits at the server, so there is something to resume from.
        assert stream.try_next() is None
        self.db["inserts"].insert_one({"_id": self.id})
        self.go()
        change = stream.next()
        assert change["documentKey"]["_id"] == self.id, change
        # Once, and no second time.
        assert stream.try_next() is None

    def first_statement(self):
        def callback(session):
            self.go()
            self.db["inserts"].insert_one({"_id": self.id}, session=session)

        self.in_transaction(callback)

    def statement(self):
        def callback(session):
            self.things.update_one({"_id": self.id}, self.increment(), session=session)
            self.go()
            self.db["inserts"].insert_one({"_id": self.id}, session=session)

        self.in_transaction(callback)

    def commit(self):
        def callback(session):
            self.things.update_one({"_id": self.id}, self.increment(), session=session)
            self.db["inserts"].insert_one({"_id": self.id}, session=session)
            self.go()

        self.in_transaction(callback)

    def abort(self):
        with self.client.start_session() as session:
            session.start_transaction()
            self.db["inserts"].insert_one({"_id": self.id}, session=session)
            self.go()
            session.abort_transaction()

    def unacknowledged(self):
        self.silently({"_id": self.id})

    def silently(self, document):
        silent = self.db.get_collection("inserts", write_concern=WriteConcern(w=0))
        self.go()
        silent.insert_one(document)
        # On the same socket: answered once the write is over.
        self.client.admin.command("ping")

    def ping(self):
        self.go()
        self.client.admin.command("ping")

    def hello(self):
        self.go()
        assert self.client.admin.command("hello")["msg"] == "isdbgrid"

    def large_insert(self):
        self.go()
        self.db["inserts"].insert_one({"_id": self.id, "text": "x" * LARGE})

    def large_command(self):
        self.go()
        self.db.command("insert", "inserts", documents=[{"_id": self.id, "text": "x" * LARGE}])

    def large_statement(self):
        def callback(session):
            self.things.update_one({"_id": self.id}, self.increment(), session=session)
            self.go()
            self.db["inserts"].insert_one({"_id": self.id, "text": "x" * LARGE}, session=session)

        self.in_transaction(callback)

    def large_unacknowledged(self):
        self.silently({"_id": self.id, "text": "x" * LARGE})

    def load(self):
        """Inserts and reads from many threads until the next line comes."""
        over = threading.Event()
        self.ears.loaded = True

        def worker(number):
            done, seen = 0, []
            while not over.is_set():
                document = {"_id": f"{number}:{done}", "worker": number, "n": done}
                try:
                    self.db["ledger"].insert_one(document)
                    done += 1
                    if self.db["ledger"].find_one({"_id": document["_id"]}) != document:
                        seen.append(f"{document} was acknowledged and is not there")
                except errors.PyMongoError as error:
                    return done, [*seen, short(error)]
            return done, seen

        with ThreadPoolExecutor(WORKERS) as pool:
            workers = [pool.submit(worker, number) for number in range(WORKERS)]
            self.go()
            over.set()
            results = [worker.result() for worker in workers]
        self.ears.loaded = False
        self.facts["acknowledged"] = [done for done, _ in results]
        self.facts["errors"] = [error for _, seen in results for error in seen]
        self.facts["retried"] = self.ears.retried


def short(error):
    """What is wrong, without what the server says about clocks."""
    details = getattr(error, "details", None) or {}
    code, labels = getattr(error, "code", None), sorted(getattr(error, "_error_labels", ()))
    return f"{type(error).__name__} {code} {labels}: {details.get('errmsg', error)}"


def carry_out(operation, name):
    error = None
    try:
        getattr(operation, name)()
    except (errors.PyMongoError, AssertionError) as raised:
        error = {"code": getattr(raised, "code", None), "text": short(raised)}
    tell("done", error=error, gone=operation.gone, **operation.facts)
    if operation.cleanup:
        try:
            operation.cleanup()
        except errors.PyMongoError:
            pass


def main():
    clients = {}
    while order := heard():
        if "uri" in order:
            ears = Ears(order["client"])
            client = MongoClient(order["uri"], event_listeners=[ears], serverSelectionTimeoutMS=10_000)
            clients[order["client"]] = client, ears
        elif "operation" in order:
            carry_out(Operation(*clients[order["on"]], order["id"]), order["operation"])
        else:
            # pymongo tells its listeners of servers about once a second.
            time.sleep(1.5)
            for client, ears in clients.values():
                ears.closing = True
                client.close()
            tell("done", error=None)
            return


if __name__ == "__main__":
    main()
