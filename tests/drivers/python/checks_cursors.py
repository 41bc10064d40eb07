"""Cursors: batches, options, and their end."""

from concurrent.futures import ThreadPoolExecutor

from bson import Int64
from pymongo import CursorType
from pymongo.collation import Collation

from harness import check, fails, same


@check
def cursor(s):
    c = s.collection("cursor", [{"_id": i, "n": -i, "text": "x" * 50} for i in range(2000)])
    found = c.find({}, {"text": 0}).sort("n", 1).skip(10).limit(1500).batch_size(100)
    same(list(found), [{"_id": i, "n": -i} for i in range(1989, 489, -1)], "documents")
    same(found.alive, False, "alive")


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
def cursor_timeout_free(s):
    c = s.collection("timeout_free", [{"_id": i} for i in range(100)])
    # The server keeps such a cursor for as long as its session lives.
    with s.client.start_session() as session, s.view.sent("find") as sent:
        found = c.find(no_cursor_timeout=True, session=session).sort("_id").batch_size(10)
        same([d["_id"] for d in found], list(range(100)), "ids")
    same([command.get("noCursorTimeout") for command in sent], [True], "noCursorTimeout sent")


@check
def aggregate(s):
    c = s.collection("aggregate", [{"_id": i, "group": i % 300, "n": i} for i in range(3000)])
    pipeline = [{"$group": {"_id": "$group", "sum": {"$sum": "$n"}}}, {"$sort": {"_id": 1}}]
    wanted = [{"_id": g, "sum": sum(range(g, 3000, 300))} for g in range(300)]
    same(list(c.aggregate(pipeline, batchSize=50)), wanted, "groups")
    same(list(c.aggregate(pipeline, allowDiskUse=True, batchSize=0)), wanted, "groups after an empty first batch")


@check
def aggregate_out(s):
    c = s.collection("aggregate_from", [{"_id": i, "group": i % 3} for i in range(300)])
    out, merged = s.collection("aggregate_out", [{"_id": -1}]), s.collection("aggregate_merged", [{"_id": 1, "old": 1}])
    same(list(c.aggregate([{"$match": {"group": 1}}, {"$out": out.name}])), [], "result of $out")
    same((out.count_documents({}), out.find_one({"_id": -1})), (100, None), "count after $out, what was there before")
    list(c.aggregate([{"$match": {"group": 1}}, {"$merge": {"into": merged.name, "whenMatched": "merge"}}]))
    same(merged.count_documents({}), 100, "count after $merge")
    same(merged.find_one({"_id": 1}), {"_id": 1, "old": 1, "group": 1}, "merged document")


@check
def collation(s):
    c = s.collection("collation", [{"_id": word} for word in ("b", "A", "a", "B", "ä")])
    german = Collation(locale="de", strength=2)
    same(sorted(d["_id"] for d in c.find({"_id": "a"}, collation=german)), ["A", "a"], "equal but for case")
    same(next(c.find().sort("_id").collation(Collation("de", strength=1)))["_id"] in "Aaä", True, "first")
    same(c.count_documents({"_id": "B"}, collation=german), 2, "count")
    same(c.delete_many({"_id": "b"}, collation=german).deleted_count, 2, "deleted")
    same(c.distinct("_id", {"_id": "A"}, collation=german), ["A"], "distinct")
    folded = s.collection("collation_default", [{"_id": "x"}], collation=german)
    same(folded.find_one({"_id": "X"}), {"_id": "x"}, "by the collection's own collation")


@check
def explain(s):
    c = s.collection("explain", [{"_id": i, "k": i} for i in range(5)])
    explained = c.find({"k": 3}).explain()
    same(explained["ok"], 1.0, "ok")
    same(explained["executionStats"]["nReturned"], 1, "nReturned")
    pipeline = [{"$match": {"k": {"$gte": 3}}}]
    command = {"aggregate": c.name, "pipeline": pipeline, "cursor": {}}
    explained = s.db.command({"explain": command, "verbosity": "executionStats"})
    same(explained["executionStats"]["totalDocsExamined"], 5, "totalDocsExamined")


@check
def let_and_comment(s):
    c = s.collection("comment", [{"_id": i, "n": i} for i in range(10)])
    greater = {"$expr": {"$gt": ["$n", "$$limit"]}}
    s.db.command("profile", 2)
    try:
        found = c.find(greater, let={"limit": 6}, comment="tag find").batch_size(2)
        same(sorted(d["_id"] for d in found), [7, 8, 9], "found with let")
        same(c.update_many(greater, {"$set": {"seen": 1}}, let={"limit": 5}, comment="tag update").modified_count, 4)
        same(c.delete_many(greater, let={"limit": 7}, comment="tag delete").deleted_count, 2, "deleted with let")
        counted = c.aggregate([{"$match": greater}, {"$count": "n"}], let={"limit": 4}, comment={"tag": "aggregate"})
        same(list(counted), [{"n": 3}], "counted with let")
        c.insert_one({"_id": 11}, comment="tag insert")
    finally:
        s.db.command("profile", 0)
    comments = [d["command"].get("comment") for d in s.db["system.profile"].find({"ns": c.full_name})]
    # A getMore carries the comment of its find.
    wanted = ["tag find", "tag find", "tag update", "tag delete", {"tag": "aggregate"}, "tag insert"]
    same(sorted(map(str, comments)), sorted(map(str, wanted)), "comments in the profile")


@check
def hint(s):
    c = s.collection("hint", [{"_id": i, "a": i, "b": i} for i in range(20)])
    c.create_index("a")
    c.create_index("b", name="by_b")
    query = {"a": 3, "b": 3}
    for wanted, hinted in (("by_b", "by_b"), ("a_1", [("a", 1)]), ("_id_", [("_id", 1)])):
        same(list(c.find(query).hint(hinted)), [{"_id": 3, **query}], "found")
        plan = str(c.find(query).hint(hinted).explain()["queryPlanner"]["winningPlan"])
        assert f"'indexName': '{wanted}'" in plan, f"{wanted} is not in {plan}"
    same(c.update_one(query, {"$set": {"n": 1}}, hint="by_b").modified_count, 1, "updated")
    same(c.delete_one(query, hint=[("a", 1)]).deleted_count, 1, "deleted")
    fails(2, lambda: list(c.find(query).hint("no_such_index")))


@check
def list_cursors(s):
    names = [f"list_{i:02}" for i in range(24)]
    for name in names:
        s.db[name].insert_one({})
    with s.view.sent("getMore") as sent:
        listed = s.db.list_collections(filter={"name": {"$regex": "^list_"}}, cursor={"batchSize": 7}).batch_size(7)
        same(sorted(d["name"] for d in listed), names, "collections")
        same(len(sent) >= 3, True, "several batches of collections")
        c = s.db[names[0]]
        s.db.command({"createIndexes": c.name, "indexes": [{"key": {f"k{i}": 1}, "name": f"{i}"} for i in range(12)]})
        sent.clear()
        listed = s.db.cursor_command("listIndexes", c.name, cursor={"batchSize": 4}).batch_size(4)
        same([d["name"] for d in listed], ["_id_"] + [f"{i}" for i in range(12)], "indexes")
        same(len(sent) >= 3, True, "several batches of indexes")


@check
def kill_cursors(s):
    c = s.collection("kill_cursors", [{"_id": i} for i in range(100)])
    found = [c.find().batch_size(10) for _ in range(3)]
    for one in found:
        next(one)
    ids = [Int64(one.cursor_id) for one in found]
    unknown = Int64(1234567)
    reply = s.db.command({"killCursors": c.name, "cursors": [ids[0], unknown, ids[1]]})
    same((sorted(reply["cursorsKilled"]), reply["cursorsNotFound"]), (sorted(ids[:2]), [unknown]), "killed, not found")
    same((reply["cursorsAlive"], reply["cursorsUnknown"]), ([], []), "alive, unknown")
    for one in found[:2]:
        fails(43, lambda: list(one))
    same(len(list(found[2])), 99, "the rest of the cursor that lives")


@check
def tailable(s):
    c = s.collection("tailable", [{"_id": i} for i in range(5)], capped=True, size=100_000)
    found = c.find(cursor_type=CursorType.TAILABLE_AWAIT).max_await_time_ms(500).batch_size(2)
    same([next(found)["_id"] for _ in range(5)], list(range(5)), "what is there")
    s.view.get_more.clear()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: [next(found)["_id"] for _ in range(5)])
        assert s.view.get_more.wait(10), "the cursor does not wait"
        for i in range(5, 10):
            c.insert_one({"_id": i})
        same(reading.result(20), list(range(5, 10)), "what came while it waited")
    same(found.alive, True, "alive")
    cursor_id = found.cursor_id
    found.close()
    s.gone(c, cursor_id)
