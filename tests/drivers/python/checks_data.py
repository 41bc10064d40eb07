"""Writing and reading documents, and what is said about them."""

import pymongo
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateMany, UpdateOne

from harness import Lacking, check, same

DOCUMENTS = 10_500


@check
def connect(s):
    same(s.client.admin.command("ping")["ok"], 1.0, "ok")
    assert s.client.server_info()["version"]
    s.client.drop_database(s.db.name)


@check
def compression(s):
    # A later hello that does not ask repeats what the connection negotiated in its handshake.
    wanted = [s.compressor] if s.compressor else None
    same(s.client.admin.command("hello").get("compression"), wanted, "negotiated compression")


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
def bulk_write_client(s):
    if not hasattr(pymongo.MongoClient, "bulk_write") or s.api.name == "motor":
        raise Lacking("this driver has no MongoClient.bulk_write")
    a, b = s.collection("bulk_client_a"), s.collection("bulk_client_b")
    models = [InsertOne({"_id": i}, namespace=c.full_name) for i in range(500) for c in (a, b)]
    models.append(UpdateMany({}, {"$set": {"n": 1}}, namespace=b.full_name))
    if s.wire_version() < 25:
        try:
            s.client.bulk_write(models)
        except pymongo.errors.InvalidOperation as refusal:
            raise Lacking(f"before 8.0: {refusal}") from None
        raise AssertionError("a server before 8.0 took it")
    result = s.client.bulk_write(models)
    same((result.inserted_count, result.modified_count), (1000, 500), "inserted, modified")
    same((a.count_documents({"n": 1}), b.count_documents({"n": 1})), (0, 500), "counts")


@check
def batches(s):
    c = s.collection("batches")
    text = "x" * 200
    inserted = c.insert_many({"_id": i, "text": text} for i in range(DOCUMENTS)).inserted_ids
    same(inserted, list(range(DOCUMENTS)), "ids inserted")
    with s.view.sent("getMore") as sent:
        found = [d["_id"] for d in c.find({"text": text}).sort("_id").batch_size(1000)]
    same(found, list(range(DOCUMENTS)), "ids found")
    same(len(sent), 10, "getMores")
