"""Reads with guarantees, sessions and transactions."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from pymongo import ReadPreference, WriteConcern, errors
from pymongo.read_concern import ReadConcern

from harness import check, fails, same


@check
def read_options(s):
    c = s.collection("read_options", [{"_id": 1}])
    for level in ("local", "available", "majority", "linearizable"):
        concern = c.with_options(read_concern=ReadConcern(level))
        same(concern.find_one(), {"_id": 1}, f"document under {level}")
        same(list(concern.aggregate([{"$match": {}}])), [{"_id": 1}], f"aggregate under {level}")


@check
def read_preferences(s):
    c = s.collection("read_preferences", [{"_id": i} for i in range(50)])
    modes = (
        ReadPreference.PRIMARY,
        ReadPreference.PRIMARY_PREFERRED,
        ReadPreference.SECONDARY_PREFERRED,
        ReadPreference.NEAREST,
    )
    for mode in modes:
        read = c.with_options(read_preference=mode)
        same(len(list(read.find().batch_size(20))), 50, f"found under {mode!r}")
        same(read.count_documents({}), 50, f"count under {mode!r}")
    # The only member is the primary: a driver finds that out itself, and through the proxy it is told.
    with closing(s.open(serverSelectionTimeoutMS=500, retryReads=False)) as client:
        read = client[s.db.name][c.name].with_options(read_preference=ReadPreference.SECONDARY)
        if s.view_name == "replicaset":
            try:
                read.find_one()
            except errors.ServerSelectionTimeoutError:
                return
            raise AssertionError("there is no secondary, and no error")
        fails(6, read.find_one)


@check
def causal_reads(s):
    c = s.collection("causal", [])
    majority = c.with_options(write_concern=WriteConcern("majority"), read_concern=ReadConcern("majority"))
    nearest = majority.with_options(read_preference=ReadPreference.NEAREST)
    with s.client.start_session(causal_consistency=True) as session, s.view.sent("find") as sent:
        for i in range(10):
            majority.insert_one({"_id": i}, session=session)
            same(nearest.find_one({"_id": i}, session=session), {"_id": i}, "own write")
        assert session.operation_time and session.cluster_time, "the session has learned no time"
        latest, time = session.operation_time, session.cluster_time
    same(all("afterClusterTime" in command["readConcern"] for command in sent), True, "afterClusterTime in each find")
    with s.client.start_session(causal_consistency=True) as session:
        session.advance_cluster_time(time)
        session.advance_operation_time(latest)
        same(nearest.count_documents({}, session=session), 10, "count in a session that was told the time")


@check
def sessions(s):
    c = s.collection("sessions", [{"_id": i} for i in range(30)])

    def worker(i):
        with s.client.start_session() as session:
            c.update_one({"_id": i}, {"$set": {"lsid": session.session_id["id"]}}, session=session)
            found = list(c.find({"_id": {"$gte": i}}, session=session).sort("_id").batch_size(2))
            same((found[0]["lsid"], len(found)), (session.session_id["id"], 30 - i), "own write, count")
            return session.session_id

    with s.view.sent("find") as sent, ThreadPoolExecutor(10) as pool:
        used = list(pool.map(worker, range(30)))
        # One that has ended goes back to the driver's pool, and out again: at most ten are in use at once.
        same({bytes(command["lsid"]["id"]) for command in sent}, {bytes(one["id"]) for one in used}, "sessions sent")
    known = {bytes(d["_id"]["id"]) for d in s.client.admin.aggregate([{"$listLocalSessions": {}}])}
    same({bytes(one["id"]) for one in used} - known, set(), "sessions the server does not know")
    with closing(s.open()) as other, other.start_session() as foreign:
        try:
            c.find_one({}, session=foreign)
        except errors.InvalidOperation:
            return
    raise AssertionError("the session of another client was taken")


@check
def snapshot_reads(s):
    c = s.collection("snapshot")
    c.with_options(write_concern=WriteConcern("majority")).insert_many([{"_id": i, "n": 1} for i in range(50)])
    with s.client.start_session(snapshot=True) as session:
        same(len(list(c.find(session=session).batch_size(20))), 50, "found first")
        c.insert_one({"_id": 50, "n": 2})
        c.delete_one({"_id": 0})
        same(len(list(c.find(session=session).batch_size(20))), 50, "found after a write")
        same(list(c.aggregate([{"$count": "n"}], session=session)), [{"n": 50}], "counted")
        same(c.distinct("n", session=session), [1], "distinct")
    same(sorted(c.distinct("n")), [1, 2], "distinct without the session")


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
def transaction_errors(s):
    c = s.collection("transaction_errors", [{"_id": 1}])
    with s.client.start_session() as session:
        session.start_transaction()
        c.insert_one({"_id": 2}, session=session)
        error = fails(11000, lambda: c.insert_one({"_id": 1}, session=session))
        same(error.has_error_label("TransientTransactionError"), False, "a duplicate key is transient")
        error = fails(251, lambda: c.insert_one({"_id": 3}, session=session))
        same(error.has_error_label("TransientTransactionError"), True, "transient label of the next statement")
        session.abort_transaction()

        def work(session):
            c.insert_one({"_id": 4}, session=session)
            c.insert_one({"_id": 1}, session=session)

        fails(11000, lambda: session.with_transaction(work))
        same([d["_id"] for d in c.find()], [1], "documents")
        session.with_transaction(lambda x: c.insert_one({"_id": 5}, session=x))
    same(c.count_documents({}), 2, "count after a good transaction in the same session")
