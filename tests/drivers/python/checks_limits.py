"""Large messages, limits, trouble, and what the connection says about itself."""

import hashlib
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from pymongo import WriteConcern, errors, uri_parser
from pymongo.server_api import ServerApi

from harness import VIEWS, View, check, fails, same

LARGE = 15 * 1024 * 1024
FILE = 20 * 1024 * 1024
MEGABYTE = 1_000_000
# Retryable, but not a change of the server's state, which would make a driver without proxy drop its pool.
HOST_UNREACHABLE = 6


@check
def large_document(s):
    c = s.collection("large")
    data = os.urandom(LARGE)
    c.insert_one({"_id": 1, "data": data})
    assert c.find_one({"_id": 1})["data"] == data, "the document came back different"


@check
def large_bulk(s):
    c = s.collection("large_bulk")
    # What repeats compresses fast, and a document that came back as another one would show.
    documents = [{"_id": i, "data": os.urandom(1000) * (MEGABYTE // 1000)} for i in range(47)]
    with s.view.sent("insert") as sent:
        same(len(c.insert_many(documents).inserted_ids), 47, "inserted")
    same(len(sent), 1, "messages")
    assert list(c.find().sort("_id")) == documents, "the documents came back different"
    s.db.drop_collection(c.name)


@check
def gridfs(s):
    bucket = s.api.bucket()(s.db)
    data = os.urandom(FILE)
    file_id = bucket.upload_from_stream("file", data)
    read = io.BytesIO()
    bucket.download_to_stream(file_id, read)
    same(hashlib.sha256(read.getbuffer()).hexdigest(), hashlib.sha256(data).hexdigest(), "hash")
    bucket.delete(file_id)
    same(s.db["fs.chunks"].count_documents({}), 0, "chunks left")


@check
def unacknowledged_write(s):
    s.collection("unacknowledged")
    # One socket only: the read comes right behind the write.
    view = View()
    with closing(s.open(event_listeners=[view], maxPoolSize=1)) as client:
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
def stable_api(s):
    c = s.collection("stable_api", [{"_id": i} for i in range(10)])
    with closing(s.open(server_api=ServerApi("1", strict=True, deprecation_errors=True))) as client:
        db = client[s.db.name]
        same(client.admin.command("ping")["ok"], 1.0, "ping")
        same(len(list(db[c.name].find().batch_size(3))), 10, "found")
        db[c.name].insert_one({"_id": 10})
        with client.start_session() as session:
            session.with_transaction(lambda x: db[c.name].insert_one({"_id": 11}, session=x).inserted_id)
        same(db[c.name].count_documents({}), 12, "count")
        # What the server would refuse, and what a proxy answers itself.
        for command in ("dbStats", "whatsmyuri", "connPoolStats", "isMaster"):
            fails(323, lambda: db.command(command))
        fails(323, lambda: db.command("distinct", c.name, key="_id"))


@check
def max_time(s):
    c = s.collection("max_time", [{"_id": i} for i in range(3)])
    slow = {"$where": "sleep(1000) || true"}
    fails(50, lambda: list(c.find(slow).max_time_ms(50)))
    fails(50, lambda: s.db.command("count", c.name, query=slow, maxTimeMS=50))
    same(len(list(c.find().max_time_ms(10_000).batch_size(2))), 3, "found in time")


@check
def write_concern(s):
    c = s.collection("write_concern")
    majority = c.with_options(write_concern=WriteConcern("majority", wtimeout=10_000))
    same(majority.insert_one({"_id": 1}).acknowledged, True, "acknowledged")
    same(c.with_options(write_concern=WriteConcern(1, j=True)).insert_one({"_id": 2}).acknowledged, True, "journaled")
    # The set has one member.
    two = c.with_options(write_concern=WriteConcern(2, wtimeout=500))
    error = fails(100, lambda: two.insert_one({"_id": 3}))
    assert isinstance(error, errors.WriteConcernError), repr(error)
    same(c.count_documents({}), 3, "count: the write itself is done")


@check
def retryable_reads(s):
    c = s.collection("retryable_reads", [{"_id": i} for i in range(10)])
    reads = {
        "find": lambda: len(list(c.find())),
        "aggregate": lambda: len(list(c.aggregate([{"$match": {}}]))),
        "distinct": lambda: len(c.distinct("_id")),
    }
    for name, read in reads.items():
        for code in (HOST_UNREACHABLE, 89, 9001):
            with s.failing(c, {"times": 1}, failCommands=[name], errorCode=code), s.view.sent(name) as sent:
                same(read(), 10, f"{name} after {code}")
                same(len(sent), 2, f"attempts of {name} after {code}")
    with s.failing(c, "alwaysOn", failCommands=["find"], errorCode=HOST_UNREACHABLE):
        fails(HOST_UNREACHABLE, lambda: list(c.find()))


@check
def retryable_writes(s):
    c = s.collection("retryable_writes", [{"_id": i, "n": 0} for i in range(10)])
    increment = {"$inc": {"n": 1}}
    writes = {
        "update": lambda: c.update_one({"_id": 1}, increment),
        "findAndModify": lambda: c.find_one_and_update({"_id": 2}, increment),
        "insert": lambda: c.insert_one({"of": "insert"}),
        "delete": lambda: c.delete_one({"_id": {"$gte": 5}}),
    }
    labels = {"errorLabels": ["RetryableWriteError"]}
    # Once before the write is done and once after: its statement number keeps it from being done again.
    for failure in ({"errorCode": HOST_UNREACHABLE, **labels}, {"writeConcernError": {"code": 6, "errmsg": "x", **labels}}):
        for name, write in writes.items():
            with s.failing(c, {"times": 1}, failCommands=[name], **failure), s.view.sent(name) as sent:
                write()
                same(len(sent), 2, f"attempts of {name} after {failure}")
                same(len({command["txnNumber"] for command in sent}), 1, "transaction numbers")
    same([c.find_one({"_id": i})["n"] for i in (1, 2)], [2, 2], "increments")
    same(c.count_documents({"of": "insert"}), 2, "inserts")
    same(c.count_documents({"_id": {"$type": "number"}}), 8, "what two deletes left")
    # What cannot be retried is told.
    with s.failing(c, {"times": 1}, failCommands=["update"], errorCode=HOST_UNREACHABLE):
        fails(HOST_UNREACHABLE, lambda: c.update_many({}, increment))


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
    same(c.count_documents({}), 3, "count")


@check
def commands(s):
    command = s.client.admin.command
    stats = command("connPoolStats")
    assert isinstance(stats["hosts"], dict) and isinstance(stats["totalCreated"], int), f"connPoolStats: {stats}"
    host, _, port = command("whatsmyuri")["you"].rpartition(":")
    same(host, "127.0.0.1", "whatsmyuri")
    assert port.isdigit()
    user = uri_parser.parse_uri(s.uri)["username"]
    users = [{"user": user, "db": "admin"}] if user else []
    same(command("connectionStatus")["authInfo"]["authenticatedUsers"], users, "users")
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
def monitoring_quiet(s):
    same(s.view.servers_lost, [], "servers lost")
    same(s.view.pools_cleared, 0, "pools cleared")
    same(s.view.heartbeats_failed, [], "heartbeats failed")
    # Behind a load balancer there is nobody to monitor.
    same(s.view.heartbeats > 0, s.view_name != "loadbalanced", "there were heartbeats")


@check
def view(s):
    topology, server = VIEWS[s.view_name]
    seen = s.client.topology_description
    same(seen.topology_type_name, topology, "topology type")
    types = [d.server_type_name for d in seen.server_descriptions().values()]
    same(types, [server], "server types")


@check
def close(s):
    s.client.drop_database(s.db.name)
    s.client.close()
    same(s.view.servers_lost, [], "servers lost")
    try:
        s.client.admin.command("ping")
    except errors.InvalidOperation:
        return
    raise AssertionError("a closed client works")
