package drivers;

import static drivers.Scenario.doc;
import static drivers.Scenario.fails;
import static drivers.Scenario.failsIn;
import static drivers.Scenario.holds;
import static drivers.Scenario.ids;
import static drivers.Scenario.numbered;
import static drivers.Scenario.same;
import static drivers.Scenario.span;

import com.mongodb.ErrorCategory;
import com.mongodb.MongoNamespace;
import com.mongodb.MongoWriteException;
import com.mongodb.bulk.BulkWriteResult;
import com.mongodb.client.MongoCollection;
import com.mongodb.client.MongoCursor;
import com.mongodb.client.model.BulkWriteOptions;
import com.mongodb.client.model.Collation;
import com.mongodb.client.model.CollationStrength;
import com.mongodb.client.model.CountOptions;
import com.mongodb.client.model.DeleteManyModel;
import com.mongodb.client.model.DeleteOneModel;
import com.mongodb.client.model.DeleteOptions;
import com.mongodb.client.model.FindOneAndReplaceOptions;
import com.mongodb.client.model.FindOneAndUpdateOptions;
import com.mongodb.client.model.IndexOptions;
import com.mongodb.client.model.InsertManyOptions;
import com.mongodb.client.model.InsertOneModel;
import com.mongodb.client.model.RenameCollectionOptions;
import com.mongodb.client.model.ReplaceOneModel;
import com.mongodb.client.model.ReturnDocument;
import com.mongodb.client.model.UpdateManyModel;
import com.mongodb.client.model.UpdateOneModel;
import com.mongodb.client.model.UpdateOptions;
import com.mongodb.client.model.WriteModel;
import com.mongodb.client.model.bulk.ClientNamespacedWriteModel;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Stream;
import org.bson.BsonInt32;
import org.bson.Document;

/** Documents: writing, finding, aggregating, and what the options of a command ask for. */
final class Documents {
    private Documents() {}

    static void connect(Scenario s) {
        same(s.admin(doc("ping", 1)).get("ok"), 1.0, "ok");
        holds(!s.admin(doc("buildInfo", 1)).getString("version").isEmpty(), "the server has no version");
        s.db.drop();
    }

    static void compression(Scenario s) {
        // A later hello that does not ask repeats what the connection negotiated in its handshake.
        List<String> wanted = s.compressor == null ? null : List.of(s.compressor);
        same(s.admin(doc("hello", 1)).get("compression"), wanted, "negotiated compression");
    }

    static void crud(Scenario s) {
        MongoCollection<Document> c = s.collection("crud");
        same(c.insertOne(doc("_id", 1, "n", 1, "tag", "a")).getInsertedId(), new BsonInt32(1), "inserted id");
        List<Document> many = Arrays.asList(numbered(11, i -> doc("n", i, "tag", i % 2 == 0 ? "a" : "b"))).subList(2, 11);
        same(c.insertMany(many).getInsertedIds().size(), 9, "inserted");
        same(c.find(doc("_id", 7)).first().get("n"), 7, "n");
        same(ids(c.find(doc("n", doc("$gte", 8))).sort(doc("_id", 1))), List.of(8, 9, 10), "found");
        same(c.updateOne(doc("_id", 1), doc("$inc", doc("n", 10))).getModifiedCount(), 1L, "updated one");
        same(c.updateMany(doc("tag", "b"), doc("$set", doc("seen", true))).getModifiedCount(), 4L, "updated many");
        same(c.updateOne(doc("_id", 11), doc("$set", doc("n", 11)), new UpdateOptions().upsert(true)).getUpsertedId(),
                new BsonInt32(11), "upserted id");
        same(c.replaceOne(doc("_id", 2), doc("replaced", true)).getModifiedCount(), 1L, "replaced");
        same(c.find(doc("_id", 2)).first(), doc("_id", 2, "replaced", true), "replaced document");
        same(c.deleteOne(doc("_id", 3)).getDeletedCount(), 1L, "deleted one");
        same(c.deleteMany(doc("_id", doc("$in", List.of(4, 5)))).getDeletedCount(), 2L, "deleted many");
        Document updated = c.findOneAndUpdate(doc("_id", 1), doc("$inc", doc("n", 1)),
                new FindOneAndUpdateOptions().returnDocument(ReturnDocument.AFTER));
        same(updated.get("n"), 12, "found and updated");
        Document replaced = c.findOneAndReplace(doc("_id", 6), doc("r", 1),
                new FindOneAndReplaceOptions().returnDocument(ReturnDocument.AFTER));
        same(replaced, doc("_id", 6, "r", 1), "found and replaced");
        same(c.findOneAndDelete(doc("_id", 6)), doc("_id", 6, "r", 1), "found and deleted");
        same(c.find(doc("_id", 6)).first(), null, "document that is gone");
        same(c.countDocuments(), 7L, "count");
        same(c.estimatedDocumentCount(), 7L, "estimated count");
        same(c.distinct("tag", String.class).into(new TreeSet<>()), Set.of("a", "b"), "distinct");
    }

    static void catalog(Scenario s) {
        MongoCollection<Document> c = s.collection("catalog", numbered(5, i -> doc("k", i)));
        same(c.createIndex(doc("k", 1), new IndexOptions().unique(true)), "k_1", "index name");
        same(names(c), Set.of("_id_", "k_1"), "indexes");
        holds(s.db.listCollectionNames().into(new ArrayList<>()).contains("catalog"), "the collection is not listed");
        List<String> databases = s.client.listDatabaseNames().into(new ArrayList<>());
        holds(databases.contains(s.db.getName()), "the database is not listed");
        c.dropIndex("k_1");
        same(names(c), Set.of("_id_"), "indexes after the drop");
        MongoNamespace to = new MongoNamespace(s.db.getName(), "renamed");
        c.renameCollection(to, new RenameCollectionOptions().dropTarget(true));
        same(s.db.getCollection("renamed").countDocuments(), 5L, "count after rename");
        s.db.getCollection("renamed").drop();
        holds(!s.db.listCollectionNames().into(new ArrayList<>()).contains("renamed"), "the dropped one is listed");
    }

    private static Set<String> names(MongoCollection<Document> c) {
        Set<String> names = new TreeSet<>();
        c.listIndexes().forEach(index -> names.add(index.getString("name")));
        return names;
    }

    static void bulkWrite(Scenario s) {
        MongoCollection<Document> c = s.collection("bulk");
        List<WriteModel<Document>> models = new ArrayList<>();
        for (Document document : numbered(1000, i -> doc("n", 0))) {
            models.add(new InsertOneModel<>(document));
        }
        models.add(new UpdateOneModel<>(doc("_id", 0), doc("$set", doc("n", 5))));
        models.add(new UpdateManyModel<>(doc(), doc("$inc", doc("n", 1))));
        models.add(new ReplaceOneModel<>(doc("_id", 1), doc("n", 7)));
        models.add(new DeleteOneModel<>(doc("_id", 2)));
        models.add(new UpdateOneModel<>(doc("_id", -1), doc("$set", doc("n", 1)), new UpdateOptions().upsert(true)));
        models.add(new DeleteManyModel<>(doc("_id", doc("$gte", 990))));
        BulkWriteResult result = c.bulkWrite(models);
        List<Integer> counts = List.of(result.getInsertedCount(), result.getModifiedCount(), result.getDeletedCount(),
                result.getUpserts().size());
        same(counts, List.of(1000, 1002, 11, 1), "inserted, modified, deleted, upserted");
        List<Object> values = Stream.of(0, 1, 3).map(i -> c.find(doc("_id", i)).first().get("n")).toList();
        same(values, List.of(6, 7, 1), "values");
        // In any order: each of the two that fail is named, all others are done.
        List<InsertOneModel<Document>> inserts =
                Stream.of(5000, 10, 5001, 11, 5002).map(i -> new InsertOneModel<>(doc("_id", i))).toList();
        failsIn(List.of(1, 3), () -> c.bulkWrite(inserts, new BulkWriteOptions().ordered(false)));
        same(c.countDocuments(doc("_id", doc("$gte", 5000))), 3L, "count of those that did not");
    }

    static void bulkWriteClient(Scenario s) {
        if (s.admin(doc("hello", 1)).getInteger("maxWireVersion") < 25) {
            throw new Scenario.Lacking("the command bulkWrite came with server 8.0");
        }
        MongoCollection<Document> a = s.collection("bulk_a");
        MongoCollection<Document> b = s.collection("bulk_b");
        var result = s.client.bulkWrite(List.of(
                ClientNamespacedWriteModel.insertOne(a.getNamespace(), doc("_id", 1)),
                ClientNamespacedWriteModel.insertOne(b.getNamespace(), doc("_id", 2)),
                ClientNamespacedWriteModel.deleteOne(a.getNamespace(), doc("_id", 1))));
        same(List.of(result.getInsertedCount(), result.getDeletedCount()), List.of(2L, 1L), "inserted, deleted");
        same(List.of(a.countDocuments(), b.countDocuments()), List.of(0L, 1L), "counts");
    }

    static void aggregate(Scenario s) {
        MongoCollection<Document> c = s.collection("aggregate", numbered(300, i -> doc("group", i % 3, "n", i)));
        List<Document> groups = c.aggregate(List.of(
                doc("$group", doc("_id", "$group", "sum", doc("$sum", "$n"))),
                doc("$sort", doc("_id", 1)))).into(new ArrayList<>());
        same(groups, Stream.of(0, 1, 2).map(g -> doc("_id", g, "sum", 14_850 + 100 * g)).toList(), "groups");
        int before = s.view.count("getMore");
        List<Document> sorted = List.of(doc("$sort", doc("_id", 1)));
        same(ids(c.aggregate(sorted).batchSize(25).allowDiskUse(true)), span(0, 300), "ids");
        holds(s.view.count("getMore") - before >= 11, "the result came in too few batches");
    }

    static void aggregateOut(Scenario s) {
        MongoCollection<Document> c = s.collection("aggregate_source", numbered(30, i -> doc("group", i % 3)));
        Document match = doc("$match", doc("group", 1));
        c.aggregate(List.of(match, doc("$out", "aggregate_out"))).toCollection();
        MongoCollection<Document> target = s.db.getCollection("aggregate_out");
        same(target.countDocuments(), 10L, "count after $out");
        Document merge = doc("$merge", doc("into", "aggregate_out", "whenMatched", "fail", "whenNotMatched", "insert"));
        c.aggregate(List.of(doc("$match", doc("group", doc("$ne", 1))), merge)).toCollection();
        same(target.countDocuments(), 30L, "count after $merge");
        fails(11000, () -> c.aggregate(List.of(match, merge)).toCollection());
    }

    static void collation(Scenario s) {
        List<String> words = List.of("b", "A", "a", "B", "c10", "c9");
        MongoCollection<Document> c = s.collection("collation", numbered(words.size(), i -> doc("w", words.get(i))));
        Collation blind = Collation.builder().locale("en").collationStrength(CollationStrength.SECONDARY).build();
        Collation numeric = Collation.builder().locale("en").numericOrdering(true).build();
        Document a = doc("w", "a");
        same(ids(c.find(a).collation(blind).sort(doc("_id", 1))), List.of(1, 2), "found");
        same(ids(c.find(doc("w", doc("$gte", "c"))).collation(numeric).sort(doc("w", 1))), List.of(5, 4), "in numeric order");
        same(c.countDocuments(a, new CountOptions().collation(blind)), 2L, "count");
        same(c.distinct("w", String.class).collation(blind).into(new ArrayList<>()).size(), 4, "distinct words");
        Document set = doc("$set", doc("seen", true));
        same(c.updateMany(a, set, new UpdateOptions().collation(blind)).getModifiedCount(), 2L, "updated");
        same(c.deleteMany(a).getDeletedCount(), 1L, "deleted without a collation");
    }

    static void explain(Scenario s) {
        MongoCollection<Document> c = s.collection("explain", numbered(20, i -> doc("k", i)));
        Document found = c.find(doc("k", doc("$lt", 5))).explain();
        same(found.get("executionStats", Document.class).get("nReturned"), 5, "nReturned");
        Document removal = s.db.runCommand(doc("explain",
                doc("delete", "explain", "deletes", List.of(doc("q", doc(), "limit", 0))), "verbosity", "executionStats"));
        holds(removal.containsKey("queryPlanner"), "delete has no queryPlanner");
        same(c.aggregate(List.of(doc("$match", doc("k", 3)))).explain().get("ok"), 1.0, "ok of an aggregate");
        same(c.countDocuments(), 20L, "count after an explained delete");
    }

    static void letAndComment(Scenario s) {
        MongoCollection<Document> c = s.collection("let", numbered(50, i -> doc("n", i)));
        Document atLeast = doc("$expr", doc("$gte", List.of("$n", "$$least")));
        Document let = doc("least", 20);
        try (MongoCursor<Document> cursor =
                c.find(atLeast).let(let).comment("tale of the find").batchSize(5).sort(doc("_id", 1)).cursor()) {
            same(cursor.next().get("_id"), 20, "first id");
            Document command = s.idleCursor(cursor.getServerCursor().getId()).get("originatingCommand", Document.class);
            same(command.get("comment"), "tale of the find", "comment that the server keeps");
            same(ids(cursor), span(21, 50), "other ids");
        }
        List<Document> pipeline = List.of(doc("$match", atLeast), doc("$sort", doc("_id", 1)));
        same(ids(c.aggregate(pipeline).let(doc("least", 45)).comment("another")), span(45, 50), "aggregated ids");
        List<Document> update = List.of(doc("$set", doc("least", "$$least")));
        UpdateOptions options = new UpdateOptions().let(let).comment("of an update");
        same(c.updateMany(atLeast, update, options).getModifiedCount(), 30L, "updated");
        same(c.countDocuments(doc("least", 20)), 30L, "count of what was set");
        same(c.deleteMany(atLeast, new DeleteOptions().let(let)).getDeletedCount(), 30L, "deleted");
    }

    static void hint(Scenario s) {
        MongoCollection<Document> c = s.collection("hint", numbered(20, i -> doc("k", i, "l", -i)));
        c.createIndex(doc("k", 1));
        c.createIndex(doc("l", 1));
        Document filter = doc("k", doc("$gte", 10));
        // What no sort asks to be in order comes in the order of the index.
        List<Integer> found = ids(c.find(filter).hintString("l_1"));
        same(found.get(0), 19, "first in the order of the index");
        same(ids(c.find(filter).hint(doc("k", 1))), span(10, 20), "ids");
        same(ids(c.aggregate(List.of(doc("$match", filter))).hintString("l_1")), found, "aggregated ids");
        fails(2, () -> c.find(filter).hintString("none_1").first());
        Document set = doc("$set", doc("seen", true));
        fails(2, () -> c.updateOne(filter, set, new UpdateOptions().hintString("none_1")));
        same(c.updateOne(filter, set, new UpdateOptions().hintString("l_1")).getModifiedCount(), 1L, "updated");
        fails(2, () -> c.deleteOne(filter, new DeleteOptions().hintString("none_1")));
        same(c.deleteOne(filter, new DeleteOptions().hintString("l_1")).getDeletedCount(), 1L, "deleted");
        same(c.countDocuments(doc("_id", 19)), 0L, "count of the last");
    }

    static void errorCodes(Scenario s) {
        MongoCollection<Document> c = s.collection("error_codes", doc("_id", 1, "n", 1));
        MongoWriteException duplicate = (MongoWriteException) fails(11000, () -> c.insertOne(doc("_id", 1)));
        same(duplicate.getError().getCategory(), ErrorCategory.DUPLICATE_KEY, "category");
        Document reply = s.db.runCommand(doc("insert", "error_codes", "documents", List.of(doc("_id", 1))));
        same(reply.getList("writeErrors", Document.class).get(0).get("keyValue"), doc("_id", 1), "keyValue");
        failsIn(List.of(1), () -> c.insertMany(List.of(doc("_id", 2), doc("_id", 1), doc("_id", 3)),
                new InsertManyOptions().ordered(false)));
        fails(59, () -> s.db.runCommand(doc("noSuchCommand", 1)));
        String text = fails(2, () -> c.find(doc("$noSuchOperator", 1)).first()).getMessage();
        holds(text.contains("$noSuchOperator"), "the text of the error is lost");
        fails(26, () -> s.db.runCommand(doc("listIndexes", "no_such_collection")));
        fails(73, () -> s.db.runCommand(doc("create", "")));
        same(c.countDocuments(), 3L, "count");
    }
}
