package drivers;

import static drivers.Scenario.doc;
import static drivers.Scenario.fails;
import static drivers.Scenario.holds;
import static drivers.Scenario.ids;
import static drivers.Scenario.numbered;
import static drivers.Scenario.same;
import static drivers.Scenario.span;

import com.mongodb.ClientSessionOptions;
import com.mongodb.MongoException;
import com.mongodb.MongoTimeoutException;
import com.mongodb.ReadConcern;
import com.mongodb.ReadPreference;
import com.mongodb.Tag;
import com.mongodb.TagSet;
import com.mongodb.client.ClientSession;
import com.mongodb.client.MongoClient;
import com.mongodb.client.MongoCollection;
import com.mongodb.client.MongoCursor;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import org.bson.BsonDocument;
import org.bson.Document;

/** Where and in which order reads and writes take place: read options, sessions, transactions. */
final class Sessions {
    private Sessions() {}

    static void readOptions(Scenario s) {
        MongoCollection<Document> c = s.collection("read_options", doc("_id", 1));
        for (ReadConcern concern :
                List.of(ReadConcern.LOCAL, ReadConcern.MAJORITY, ReadConcern.AVAILABLE, ReadConcern.LINEARIZABLE)) {
            same(ids(c.withReadConcern(concern).find()), List.of(1), "ids under " + concern.getLevel());
        }
        // In the driver there is no read concern that is none.
        fails(9, () -> s.db.runCommand(doc("find", "read_options", "readConcern", doc("level", "none"))));
    }

    static void readPreferences(Scenario s) {
        MongoCollection<Document> c = s.collection("read_preferences", numbered(50));
        for (ReadPreference preference : List.of(ReadPreference.primary(), ReadPreference.primaryPreferred(),
                ReadPreference.secondaryPreferred(), ReadPreference.nearest(),
                ReadPreference.secondaryPreferred(90, TimeUnit.SECONDS),
                ReadPreference.nearest(List.of(new TagSet(new Tag("no", "such")), new TagSet())))) {
            MongoCollection<Document> preferring = c.withReadPreference(preference);
            same(ids(preferring.find().sort(doc("_id", 1)).batchSize(20)), span(0, 50), "ids under " + preference);
            same(preferring.countDocuments(), 50L, "count under " + preference);
        }
        // The set has no secondary: only who insists on one is refused, by whoever selects the server.
        Document find = doc("find", "read_preferences", "maxTimeMS", 300);
        try (MongoClient client = s.connect(new View(), b -> b.applyToClusterSettings(
                cluster -> cluster.serverSelectionTimeout(300, TimeUnit.MILLISECONDS)))) {
            Runnable insist = () -> client.getDatabase(s.db.getName()).runCommand(find, ReadPreference.secondary());
            if (s.wanted.equals("replicaset")) {
                // This driver connects directly to a single address, and then takes what is there.
                insist.run();
            } else {
                fails(50, insist);
            }
        }
    }

    static void causalReads(Scenario s) {
        MongoCollection<Document> c = s.collection("causal_reads");
        MongoCollection<Document> nearest = c.withReadPreference(ReadPreference.nearest());
        ClientSessionOptions causal = ClientSessionOptions.builder().causallyConsistent(true).build();
        try (ClientSession session = s.client.startSession(causal); ClientSession other = s.client.startSession(causal)) {
            View.Recording recording = s.view.record(() -> span(0, 20).forEach(i -> {
                c.insertOne(session, doc("_id", i));
                same(nearest.find(session, doc("_id", i)).first(), doc("_id", i), "own write");
            }));
            same(recording.named("find").size(), 20, "finds");
            for (BsonDocument find : recording.named("find")) {
                holds(find.getDocument("readConcern").containsKey("afterClusterTime"), "a find does not wait");
            }
            other.advanceClusterTime(session.getClusterTime());
            other.advanceOperationTime(session.getOperationTime());
            same(nearest.find(other, doc("_id", 19)).first(), doc("_id", 19), "write of another session");
        }
    }

    static void sessions(Scenario s) {
        MongoCollection<Document> c = s.collection("sessions", numbered(50));
        View.Recording recording = s.view.record(() -> {
            try (ClientSession session = s.client.startSession()) {
                c.insertOne(session, doc("_id", 50));
                same(ids(c.find(session).sort(doc("_id", 1)).batchSize(20)), span(0, 51), "ids");
            }
            same(c.countDocuments(), 51L, "count");
        });
        List<BsonDocument> lsids = recording.sent().stream().map(one -> one.command().getDocument("lsid")).toList();
        // Insert, find, two getMores, and the count that is given the session again.
        same(lsids, Collections.nCopies(5, lsids.get(0)), "lsids");
        // Twenty at once, each its own; ended by name in the end.
        List<ClientSession> open = new ArrayList<>();
        for (int i = 0; i < 20; i++) {
            open.add(s.client.startSession());
            same(c.countDocuments(open.get(i)), 51L, "count");
        }
        List<BsonDocument> all = open.stream().map(session -> session.getServerSession().getIdentifier()).toList();
        same(s.admin(doc("refreshSessions", all)).get("ok"), 1.0, "ok of refreshSessions");
        same(s.admin(doc("endSessions", all)).get("ok"), 1.0, "ok of endSessions");
        open.forEach(ClientSession::close);
    }

    static void snapshotReads(Scenario s) {
        MongoCollection<Document> c = s.collection("snapshot_reads", numbered(50));
        try (ClientSession session = s.client.startSession(ClientSessionOptions.builder().snapshot(true).build())) {
            same(c.countDocuments(session), 50L, "count");
            c.deleteMany(doc("_id", doc("$lt", 25)));
            same(ids(c.find(session).sort(doc("_id", 1)).batchSize(20)), span(0, 50), "ids of before the deletion");
            int distinct = c.distinct(session, "_id", Integer.class).into(new ArrayList<>()).size();
            same(distinct, 50, "distinct ids of before the deletion");
        }
        same(c.countDocuments(), 25L, "count outside");
    }

    static void transactionCommit(Scenario s) {
        MongoCollection<Document> a = s.collection("commit_a");
        MongoCollection<Document> b = s.collection("commit_b");
        String result = s.transaction(session -> {
            a.insertOne(session, doc("_id", 1));
            b.insertOne(session, doc("_id", 2));
            same(a.countDocuments(session), 1L, "count inside");
            same(a.countDocuments(), 0L, "count outside before the commit");
            return "done";
        });
        same(result, "done", "result");
        s.transaction(session -> a.insertOne(session, doc("_id", 3)));
        same(List.of(a.countDocuments(), b.countDocuments()), List.of(2L, 1L), "counts after the commit");
        // A commit that is sent again is answered again.
        try (ClientSession session = s.client.startSession()) {
            session.startTransaction();
            a.insertOne(session, doc("_id", 4));
            session.commitTransaction();
            session.commitTransaction();
        }
        same(a.countDocuments(), 3L, "count after two commits of one transaction");
    }

    static void transactionAbort(Scenario s) {
        MongoCollection<Document> c = s.collection("abort");
        RuntimeException enough = new RuntimeException("abort");
        try {
            s.transaction(session -> {
                c.insertOne(session, doc("_id", 1));
                same(c.countDocuments(session), 1L, "count inside");
                throw enough;
            });
            throw new AssertionError("the exception was swallowed");
        } catch (RuntimeException error) {
            same(error, enough, "error");
        }
        same(c.countDocuments(), 0L, "count after the abort");
        try (ClientSession session = s.client.startSession()) {
            session.startTransaction();
            c.insertOne(session, doc("_id", 2));
            session.abortTransaction();
        }
        same(c.countDocuments(), 0L, "count after the second abort");
    }

    static void transactionConflict(Scenario s) throws Exception {
        // Write conflicts reach the driver with their label, or withTransaction would not start over.
        MongoCollection<Document> c = s.collection("conflict", doc("_id", 1, "n", 0));
        Callable<Object> worker = () -> {
            for (int i = 0; i < 3; i++) {
                s.transaction(session -> {
                    int n = c.find(session, doc("_id", 1)).first().getInteger("n");
                    return c.updateOne(session, doc("_id", 1), doc("$set", doc("n", n + 1)));
                });
            }
            return null;
        };
        Scenario.atOnce(Collections.nCopies(4, worker));
        same(c.find().first().get("n"), 12, "sum of all increments");
        // Seen without the driver's help: the second writer is told 112, and that it may start over.
        try (ClientSession first = s.client.startSession(); ClientSession second = s.client.startSession()) {
            first.startTransaction();
            second.startTransaction();
            Document increment = doc("$inc", doc("n", 1));
            c.updateOne(first, doc("_id", 1), increment);
            MongoException error = fails(112, () -> c.updateOne(second, doc("_id", 1), increment));
            holds(error.hasErrorLabel("TransientTransactionError"), "the label of the conflict is lost");
            second.abortTransaction();
            first.commitTransaction();
        }
        same(c.find().first().get("n"), 13, "sum");
    }

    static void transactionCursor(Scenario s) {
        MongoCollection<Document> c = s.collection("transaction_cursor", numbered(500));
        List<Integer> found = s.transaction(session -> {
            MongoCursor<Document> cursor = c.find(session).sort(doc("_id", 1)).batchSize(50).cursor();
            // What is written outside meanwhile is not seen.
            c.deleteMany(doc("_id", doc("$gte", 250)));
            return ids(cursor);
        });
        same(found, span(0, 500), "ids");
        same(c.countDocuments(), 250L, "count afterwards");
    }

    static void transactionErrors(Scenario s) {
        MongoCollection<Document> c = s.collection("transaction_errors", doc("_id", 1));
        try (ClientSession session = s.client.startSession()) {
            session.startTransaction();
            c.insertOne(session, doc("_id", 2));
            fails(11000, () -> c.insertOne(session, doc("_id", 1)));
            // The error has ended it: what comes after does not run outside of a transaction.
            MongoException error = fails(251, () -> c.insertOne(session, doc("_id", 3)));
            holds(error.hasErrorLabel("TransientTransactionError"), "the label of the aborted transaction is lost");
            fails(251, session::commitTransaction);
            same(c.countDocuments(), 1L, "count");
            session.startTransaction();
            c.insertOne(session, doc("_id", 2));
            session.commitTransaction();
        }
        same(c.countDocuments(), 2L, "count after another transaction of the session");
    }
}
