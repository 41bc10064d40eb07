"""The driver scenario for pymongo: each check prints one line, `ok NAME`, `FAIL NAME: reason` or `n/a NAME: why`.

    scenario.py URI [--view sharded|replicaset|loadbalanced] [--compressor zlib|snappy|zstd]

The view is what the driver's own monitoring must say about the address. `tests/drivers/README.md` explains the rest.
"""

import argparse
import hashlib
import os
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import gridfs
import pymongo
from bson import Int64
from pymongo import DeleteOne, InsertOne, MongoClient, ReadPreference, ReplaceOne, UpdateMany, UpdateOne, WriteConcern
from pymongo import errors, monitoring
from pymongo.read_concern import ReadConcern

DOCUMENTS = 10_000
LARGE = 15 * 1024 * 1024
FILE = 20 * 1024 * 1024
# What the driver must make of the address: topology type and server type.
VIEWS = {
    "sharded": ("Sharded", "Mongos"),
    "replicaset": ("ReplicaSetWithPrimary", "RSPrimary"),
    "loadbalanced": ("LoadBalanced", "LoadBalancer"),
}
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def same(found, wanted, what="value"):
    if found != wanted:
        raise AssertionError(f"{what} is {found!r:.200}, not {wanted!r:.200}")


def fails(code, operation):
    """Runs the operation, which must fail with this server code, and returns the error."""
    try:
        operation()
    except errors.OperationFailure as error:
        same(error.code, code, f"code of {error!r:.120}")
        return error
    raise AssertionError(f"no error, code {code} was due")


class View(monitoring.CommandListener, monitoring.ConnectionPoolListener, monitoring.ServerListener):
    """What one client tells about itself."""

    def __init__(self):
        self.pools_cleared = 0
        self.servers_lost = []
        self.cursor_id = None
        self.get_more = threading.Event()

    def started(self, event):
        if event.command_name == "getMore":
            self.get_more.set()

    def succeeded(self, event):
        if event.command_name == "aggregate":
            self.cursor_id = event.reply.get("cursor", {}).get("id")

    def failed(self, event):
        pass

    def opened(self, event):
        pass

    def closed(self, event):
        pass

    def description_changed(self, event):
        if event.previous_description.server_type_name != "Unknown" and event.new_description.error:
            self.servers_lost.append(repr(event.new_description.error))

    def pool_cleared(self, event):
        self.pools_cleared += 1

    def nothing(self, event):
        pass

    pool_created = pool_ready = pool_closed = nothing
    connection_created = connection_ready = connection_closed = nothing
    connection_check_out_started = connection_check_out_failed = nothing
    connection_checked_out = connection_checked_in = nothing


class Scenario:
    def __init__(self, arguments):
        self.uri = arguments.uri
        self.view_name = arguments.view
        self.compressor = arguments.compressor
        self.view = View()
        self.options = {"event_listeners": [self.view], "serverSelectionTimeoutMS": 10_000}
        if self.compressor:
            self.options["compressors"] = self.compressor
        self.client = MongoClient(self.uri, **self.options)
        self.db = self.client[f"drivers_pymongo_{pymongo.version.replace('.', '_')}"]

    def collection(self, name, documents=()):
        """An empty collection that exists, or one with these documents."""
        self.db.drop_collection(name)
        collection = self.db.create_collection(name)
        if documents:
            collection.insert_many(documents)
        return collection

    def gone(self, collection, cursor_id):
        """The cursor must no longer exist on the server; one that does would answer 50738 to this session."""
        fails(43, lambda: self.db.command({"getMore": Int64(cursor_id), "collection": collection.name}))


@check
def connect(s):
    same(s.client.admin.command("ping")["ok"], 1.0, "ok")
    assert s.client.server_info()["version"]
    s.client.drop_database(s.db.name)


@check
def compression(s):
    # A later hello that does not ask repeats what the connection negotiated in its handshake.
    same(s.client.admin.command("hello").get("compression"), [s.compressor], "negotiated compression")


@check
def crud(s):
    c = s.collection("crud")
    same(c.insert_one({"_id": 1, "n": 1, "tag": "a"}).inserted_id, 1, "inserted id")
    same(len(c.insert_many([{"_id": i, "n": i, "tag": "ab"[i % 2]} for i in range(2, 11)]).inserted_ids), 9, "inserted")
    same(c.find_one({"_id": 7})["n"], 7, "n")
    same(sorted(d["_id"] for d in c.find({"n": {"$gte": 8}})), [8, 9, 10], "found")
    same(c.update_one({"_id": 1}, {"$inc": {"n": 10}}).modified_count, 1, "updated one")
    same(c.update_many({"tag": "b"}, {"$set": {"seen": True}}).modified_count, 5 - 1, "updated many")
    assert c.update_one({"_id": 11}, {"$set": {"n": 11}}, upsert=True).upserted_id == 11, "no upsert"
    same(c.replace_one({"_id": 2}, {"replaced": True}).modified_count, 1, "replaced")
    same(c.find_one({"_id": 2}), {"_id": 2, "replaced": True}, "replaced document")
    same(c.delete_one({"_id": 3}).deleted_count, 1, "deleted one")
    same(c.delete_many({"_id": {"$in": [4, 5]}}).deleted_count, 2, "deleted many")
    after = pymongo.ReturnDocument.AFTER
    same(c.find_one_and_update({"_id": 1}, {"$inc": {"n": 1}}, return_document=after)["n"], 12, "findAndModify")
    same(c.find_one_and_replace({"_id": 6}, {"r": 1}, return_document=after), {"_id": 6, "r": 1}, "find and replace")
    same(c.find_one_and_delete({"_id": 6}), {"_id": 6, "r": 1}, "find and delete")
    same(c.count_documents({}), 7, "count")
    same(c.estimated_document_count(), 7, "estimated count")
    same(sorted(c.distinct("tag")), ["a", "b"], "distinct")


@check
def catalog(s):
    c = s.collection("catalog", [{"_id": i, "k": i} for i in range(5)])
    same(c.create_index("k", unique=True), "k_1", "index name")
    same(sorted(c.index_information()), ["_id_", "k_1"], "indexes")
    assert "catalog" in s.db.list_collection_names()
    assert s.db.name in s.client.list_database_names()
    same(c.find({"k": 3}).explain()["ok"], 1.0, "explain")
    c.rename("renamed", dropTarget=True)
    same(s.db["renamed"].count_documents({}), 5, "count after rename")


@check
def bulk_write(s):
    c = s.collection("bulk")
    result = c.bulk_write(
        [InsertOne({"_id": i, "n": 0}) for i in range(1000)]
        + [UpdateOne({"_id": 0}, {"$set": {"n": 5}}), UpdateMany({}, {"$inc": {"n": 1}})]
        + [ReplaceOne({"_id": 1}, {"n": 7}), DeleteOne({"_id": 2}), UpdateOne({"_id": -1}, {"$set": {"n": 1}}, True)]
    )
    counts = (result.inserted_count, result.modified_count, result.deleted_count, result.upserted_count)
    same(counts, (1000, 1002, 1, 1), "inserted, modified, deleted, upserted")
    same([c.find_one({"_id": i})["n"] for i in (0, 1, 3)], [6, 7, 1], "values")


@check
def cursor(s):
    c = s.collection("cursor", [{"_id": i, "text": "x" * 50} for i in range(DOCUMENTS)])
    same([d["_id"] for d in c.find().sort("_id").batch_size(100)], list(range(DOCUMENTS)), "ids")


@check
def cursor_close(s):
    c = s.collection("cursor_close", [{"_id": i} for i in range(100)])
    found = c.find().sort("_id").batch_size(10)
    same([next(found)["_id"] for _ in range(15)], list(range(15)), "ids")
    cursor_id = found.cursor_id
    assert cursor_id, "the cursor is exhausted already"
    found.close()
    s.gone(c, cursor_id)


@check
def aggregate(s):
    c = s.collection("aggregate", [{"_id": i, "group": i % 3, "n": i} for i in range(300)])
    pipeline = [{"$group": {"_id": "$group", "sum": {"$sum": "$n"}}}, {"$sort": {"_id": 1}}]
    wanted = [{"_id": g, "sum": sum(range(g, 300, 3))} for g in range(3)]
    same(list(c.aggregate(pipeline)), wanted, "groups")
    list(c.aggregate([{"$match": {"group": 1}}, {"$out": "aggregate_out"}]))
    same(s.db["aggregate_out"].count_documents({}), 100, "count after $out")


@check
def read_options(s):
    c = s.collection("read_options", [{"_id": 1}])
    for preference in (ReadPreference.SECONDARY_PREFERRED, ReadPreference.NEAREST, ReadPreference.PRIMARY_PREFERRED):
        majority = c.with_options(read_preference=preference, read_concern=ReadConcern("majority"))
        same(majority.find_one(), {"_id": 1}, f"document under {preference!r}")
    with s.client.start_session(causal_consistency=True) as session:
        for i in range(2, 12):
            c.insert_one({"_id": i}, session=session)
            nearest = c.with_options(read_preference=ReadPreference.NEAREST)
            same(nearest.find_one({"_id": i}, session=session), {"_id": i}, "own write")


@check
def transaction_commit(s):
    a, b = s.collection("commit_a"), s.collection("commit_b")

    def work(session):
        a.insert_one({"_id": 1}, session=session)
        b.insert_one({"_id": 2}, session=session)
        same(a.count_documents({}, session=session), 1, "count inside")
        same(a.count_documents({}), 0, "count outside before the commit")
        return "done"

    with s.client.start_session() as session:
        same(session.with_transaction(work), "done", "result")
        same(session.with_transaction(lambda x: a.insert_one({"_id": 3}, session=x).inserted_id), 3, "second one")
    same((a.count_documents({}), b.count_documents({})), (2, 1), "counts after the commit")


@check
def transaction_abort(s):
    c = s.collection("abort")

    def work(session):
        c.insert_one({"_id": 1}, session=session)
        same(c.count_documents({}, session=session), 1, "count inside")
        raise KeyError("abort")

    with s.client.start_session() as session:
        try:
            session.with_transaction(work)
            raise AssertionError("the exception was swallowed")
        except KeyError:
            pass
        same(c.count_documents({}), 0, "count after the abort")
        session.start_transaction()
        c.insert_one({"_id": 2}, session=session)
        session.abort_transaction()
        same(c.count_documents({}), 0, "count after the second abort")


@check
def transaction_conflict(s):
    # Write conflicts reach the driver with their label, or with_transaction would not start over.
    c = s.collection("conflict", [{"_id": 1, "n": 0}])

    def increment(session):
        n = c.find_one({"_id": 1}, session=session)["n"]
        c.update_one({"_id": 1}, {"$set": {"n": n + 1}}, session=session)

    def worker(_):
        with s.client.start_session() as session:
            for _ in range(3):
                session.with_transaction(increment)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(worker, range(4)))
    same(c.find_one({"_id": 1})["n"], 12, "sum of all increments")


@check
def transaction_cursor(s):
    c = s.collection("transaction_cursor", [{"_id": i} for i in range(500)])
    with s.client.start_session() as session, session.start_transaction():
        found = [d["_id"] for d in c.find(session=session).sort("_id").batch_size(50)]
    same(found, list(range(500)), "ids")


@check
def change_stream(s):
    c = s.collection("change_stream")
    with c.watch(max_await_time_ms=500) as stream, ThreadPoolExecutor(1) as pool:

        def read():
            seen, deadline = [], time.monotonic() + 20
            while len(seen) < 20 and time.monotonic() < deadline:
                change = stream.try_next()
                if change:
                    seen.append(change)
            return seen

        cursor_id = s.view.cursor_id
        s.view.get_more.clear()
        reading = pool.submit(read)
        assert s.view.get_more.wait(10), "the stream does not wait"
        for i in range(20):
            c.insert_one({"_id": i})
        seen = reading.result()
    same([change["fullDocument"]["_id"] for change in seen], list(range(20)), "inserts seen")
    s.gone(c, cursor_id)
    with c.watch(resume_after=seen[9]["_id"]) as stream:
        same([next(stream)["documentKey"]["_id"] for _ in range(10)], list(range(10, 20)), "inserts after resuming")


@check
def large_document(s):
    c = s.collection("large")
    data = os.urandom(LARGE)
    c.insert_one({"_id": 1, "data": data})
    assert c.find_one({"_id": 1})["data"] == data, "the document came back different"


@check
def unacknowledged_write(s):
    s.collection("unacknowledged")
    # One socket only: the read comes right behind the write.
    view = View()
    with MongoClient(s.uri, **{**s.options, "event_listeners": [view], "maxPoolSize": 1}) as client:
        c = client[s.db.name]["unacknowledged"]
        silent = c.with_options(write_concern=WriteConcern(w=0))
        for i in range(100):
            assert not silent.insert_one({"_id": i}).acknowledged
            same(c.find_one({"_id": i}), {"_id": i}, "own write")
        silent.insert_one({"_id": 1})
        silent.update_many({}, {"$set": {"n": 1}})
        same(c.count_documents({"n": 1}), 100, "count")
        same(view.pools_cleared, 0, "pools cleared")


@check
def gridfs_file(s):
    bucket = gridfs.GridFSBucket(s.db)
    data = os.urandom(FILE)
    file_id = bucket.upload_from_stream("file", data)
    with bucket.open_download_stream(file_id) as stream:
        same(hashlib.sha256(stream.read()).hexdigest(), hashlib.sha256(data).hexdigest(), "hash")
    bucket.delete(file_id)
    same(s.db["fs.chunks"].count_documents({}), 0, "chunks left")


@check
def commands(s):
    command = s.client.admin.command
    stats = command("connPoolStats")
    assert isinstance(stats["hosts"], dict) and isinstance(stats["totalCreated"], int), f"connPoolStats: {stats}"
    host, _, port = command("whatsmyuri")["you"].rpartition(":")
    same(host, "127.0.0.1", "whatsmyuri")
    assert port.isdigit()
    same(command("connectionStatus")["authInfo"]["authenticatedUsers"], [], "users")
    hello = command("hello")
    same(hello["isWritablePrimary"], True, "isWritablePrimary")
    if s.view_name == "replicaset":
        same(hello["setName"], "rs0", "setName")
    else:
        same(hello["msg"], "isdbgrid", "msg")
        same([key for key in ("setName", "hosts", "me", "primary") if key in hello], [], "fields of a set")
        assert stats["hosts"], "connPoolStats names no server"
    same(command("isMaster")["ismaster"], True, "ismaster")
    same(command("buildInfo")["ok"], 1.0, "buildInfo")
    same(s.db.command("dbStats")["db"], s.db.name, "dbStats")


@check
def error_codes(s):
    c = s.collection("error_codes", [{"_id": 1, "n": 1}])
    error = fails(11000, lambda: c.insert_one({"_id": 1}))
    assert isinstance(error, errors.DuplicateKeyError)
    same(error.details["keyValue"], {"_id": 1}, "keyValue")
    try:
        c.insert_many([{"_id": 2}, {"_id": 1}, {"_id": 3}], ordered=False)
        raise AssertionError("no BulkWriteError")
    except errors.BulkWriteError as bulk:
        same([(e["index"], e["code"]) for e in bulk.details["writeErrors"]], [(1, 11000)], "write errors")
        same(bulk.details["nInserted"], 2, "inserted")
    fails(59, lambda: s.db.command("noSuchCommand"))
    fails(2, lambda: list(c.find({"$noSuchOperator": 1})))
    fails(50, lambda: list(c.find({"$where": "sleep(1000) || true"}).max_time_ms(50)))
    same(c.count_documents({}), 3, "count")


@check
def concurrency(s):
    # Every reply carries the token of its request: one that went to the wrong thread shows.
    c = s.collection("concurrency", [{"_id": i, "text": f"document {i}" * 20} for i in range(50)])

    def worker(i):
        for n in range(20):
            token = f"{i}:{n}:{time.monotonic_ns()}"
            found = c.find_one({"_id": i}, {"text": 1, "token": {"$literal": token}})
            same(found, {"_id": i, "text": f"document {i}" * 20, "token": token}, "reply")

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(worker, range(50)))


@check
def view(s):
    topology, server = VIEWS[s.view_name]
    seen = s.client.topology_description
    same(seen.topology_type_name, topology, "topology type")
    types = [d.server_type_name for d in seen.server_descriptions().values()]
    same(types, [server], "server types")
    same(s.view.servers_lost, [], "servers lost")
    same(s.view.pools_cleared, 0, "pools cleared")


@check
def close(s):
    s.client.drop_database(s.db.name)
    s.client.close()
    same(s.view.servers_lost, [], "servers lost")


LOAD_BALANCED = {"connect", "crud", "cursor", "cursor_close", "transaction_commit", "transaction_abort", "view", "close"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("--view", choices=VIEWS, default="sharded")
    parser.add_argument("--compressor", choices=["zlib", "snappy", "zstd"])
    arguments = parser.parse_args()
    scenario = Scenario(arguments)
    failed = False
    for function in CHECKS:
        name = function.__name__
        if arguments.view == "loadbalanced" and name not in LOAD_BALANCED:
            continue
        if name == "compression" and not arguments.compressor:
            continue
        try:
            function(scenario)
            print(f"ok {name}", flush=True)
        except Exception as error:
            failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"FAIL {name}: {reason:.400}", flush=True)
            traceback.print_exc()
            if function is connect:
                break
    print("finished", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
