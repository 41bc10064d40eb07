package drivers;

import static drivers.Scenario.doc;
import static drivers.Scenario.fails;
import static drivers.Scenario.holds;
import static drivers.Scenario.ids;
import static drivers.Scenario.numbered;
import static drivers.Scenario.same;
import static drivers.Scenario.span;

import com.mongodb.CursorType;
import com.mongodb.client.FindIterable;
import com.mongodb.client.MongoChangeStreamCursor;
import com.mongodb.client.MongoCollection;
import com.mongodb.client.MongoCursor;
import com.mongodb.client.MongoDatabase;
import com.mongodb.client.MongoIterable;
import com.mongodb.client.model.CreateCollectionOptions;
import com.mongodb.client.model.IndexModel;
import com.mongodb.client.model.changestream.ChangeStreamDocument;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.bson.Document;

/** Cursors of every kind, and change streams. */
final class Cursors {
    private Cursors() {}

    static void batches(Scenario s) {
        int documents = 12_000;
        MongoCollection<Document> c = s.collection("batches");
        c.insertMany(Arrays.asList(numbered(documents, i -> doc("text", "document " + i))));
        int before = s.view.count("getMore");
        Set<Integer> seen = new HashSet<>();
        c.find().batchSize(1000).forEach(document -> {
            int i = document.getInteger("_id");
            same(document.get("text"), "document " + i, "text");
            holds(seen.add(i), "a document came twice");
        });
        same(seen.size(), documents, "documents");
        holds(s.view.count("getMore") - before >= 11, "the result came in too few batches");
        same(c.deleteMany(doc()).getDeletedCount(), (long) documents, "deleted");
    }

    static void cursor(Scenario s) {
        MongoCollection<Document> c = s.collection("cursor", numbered(5000));
        FindIterable<Document> sorted = c.find().sort(doc("_id", 1)).batchSize(100);
        same(ids(sorted), span(0, 5000), "ids");
        same(ids(sorted.skip(10).limit(250)), span(10, 260), "ids after skip and limit");
    }

    static void cursorClose(Scenario s) throws Exception {
        MongoCollection<Document> c = s.collection("cursor_close", numbered(100));
        MongoCursor<Document> cursor = c.find().sort(doc("_id", 1)).batchSize(10).cursor();
        for (int i = 0; i < 15; i++) {
            same(cursor.next().get("_id"), i, "id");
        }
        long id = cursor.getServerCursor().getId();
        cursor.close();
        s.gone(c, id);
    }

    static void cursorTimeoutFree(Scenario s) {
        MongoCollection<Document> c = s.collection("cursor_timeout_free", numbered(100));
        for (boolean free : List.of(true, false)) {
            var cursor = c.find().sort(doc("_id", 1)).batchSize(10).noCursorTimeout(free).cursor();
            Document idle = s.idleCursor(cursor.getServerCursor().getId());
            same(idle.get("noCursorTimeout"), free, "noCursorTimeout");
            same(ids(cursor), span(0, 100), "ids");
        }
    }

    static void changeStream(Scenario s) throws Exception {
        MongoCollection<Document> c = s.collection("change_stream");
        var stream = c.watch().maxAwaitTime(500, TimeUnit.MILLISECONDS).cursor();
        long id = stream.getServerCursor().getId();
        int before = s.view.count("getMore");
        Future<List<ChangeStreamDocument<Document>>> reading = Scenario.threads(1).submit(() -> {
            List<ChangeStreamDocument<Document>> seen = new ArrayList<>();
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
            while (seen.size() < 20 && System.nanoTime() < deadline) {
                var change = stream.tryNext();
                if (change != null) {
                    seen.add(change);
                }
            }
            return seen;
        });
        s.view.await("getMore", before);
        c.insertOne(doc("_id", 0));
        for (int i = 1; i < 20; i++) {
            c.insertOne(doc("_id", i));
        }
        var seen = reading.get();
        same(seen.stream().map(change -> change.getFullDocument().get("_id")).toList(), span(0, 20), "inserts seen");
        stream.close();
        s.gone(c, id);
        try (var resumed = c.watch().resumeAfter(seen.get(9).getResumeToken()).cursor()) {
            same(changes(resumed, 10), span(10, 20), "inserts after resuming");
        }
    }

    /** The ids of the documents of this many changes. */
    private static List<Integer> changes(MongoChangeStreamCursor<ChangeStreamDocument<Document>> stream, int count) {
        return Stream.generate(() -> stream.next().getDocumentKey().getInt32("_id").getValue()).limit(count).toList();
    }

    static void changeStreamResume(Scenario s) {
        MongoCollection<Document> c = s.collection("change_stream_resume");
        try (var stream = c.watch().batchSize(3).cursor()) {
            long killed = stream.getServerCursor().getId();
            span(0, 10).forEach(i -> c.insertOne(doc("_id", i)));
            List<Integer> found = new ArrayList<>(changes(stream, 4));
            Document reply = s.db.runCommand(doc("killCursors", "change_stream_resume", "cursors", List.of(killed)));
            same(reply.get("cursorsKilled"), List.of(killed), "cursors killed");
            span(10, 20).forEach(i -> c.insertOne(doc("_id", i)));
            found.addAll(changes(stream, 16));
            same(found, span(0, 20), "inserts seen");
            holds(stream.getServerCursor().getId() != killed, "the stream did not resume");
            c.insertOne(doc("_id", 20));
            same(changes(stream, 1), List.of(20), "next insert");
        }
    }

    static void changeStreamMany(Scenario s) throws Exception {
        int streams = 8;
        int inserts = 10;
        List<MongoCollection<Document>> collections = new ArrayList<>();
        List<Callable<List<Integer>>> works = new ArrayList<>();
        for (int i = 0; i < streams; i++) {
            MongoCollection<Document> c = s.collection("change_stream_" + i);
            var stream = c.watch().cursor();
            collections.add(c);
            works.add(() -> {
                try (stream) {
                    return changes(stream, inserts);
                }
            });
        }
        works.add(() -> {
            for (int n = 0; n < inserts; n++) {
                for (int i = 0; i < streams; i++) {
                    collections.get(i).insertOne(doc("_id", 100 * i + n));
                }
            }
            return List.of();
        });
        List<List<Integer>> seen = Scenario.atOnce(works);
        for (int i = 0; i < streams; i++) {
            same(seen.get(i), span(100 * i, 100 * i + inserts), "inserts seen by stream " + i);
        }
    }

    static void tailable(Scenario s) throws Exception {
        MongoCollection<Document> c = s.db.getCollection("tailable");
        c.drop();
        s.db.createCollection("tailable", new CreateCollectionOptions().capped(true).sizeInBytes(1 << 20));
        c.insertMany(Arrays.asList(numbered(3)));
        var cursor = c.find().cursorType(CursorType.TailableAwait).maxAwaitTime(500, TimeUnit.MILLISECONDS).cursor();
        List<Integer> first = Stream.generate(() -> cursor.next().getInteger("_id")).limit(3).toList();
        same(first, span(0, 3), "ids of before");
        int before = s.view.count("getMore");
        Future<List<Integer>> reading = Scenario.threads(1)
                .submit(() -> Stream.generate(() -> cursor.next().getInteger("_id")).limit(7).toList());
        s.view.await("getMore", before);
        span(3, 10).forEach(i -> c.insertOne(doc("_id", i)));
        same(reading.get(), span(3, 10), "ids of what came while it waited");
        long id = cursor.getServerCursor().getId();
        cursor.close();
        s.gone(c, id);
    }

    static void listCursors(Scenario s) {
        // More than one batch of each.
        int many = 40;
        int size = 6;
        MongoDatabase db = s.client.getDatabase(s.db.getName() + "_list");
        db.drop();
        try {
            span(0, many).forEach(i -> db.createCollection("c" + i));
            MongoCollection<Document> c = db.getCollection("c0");
            c.createIndexes(IntStream.range(0, many).mapToObj(i -> new IndexModel(doc("k" + i, 1))).toList());
            int before = s.view.count("getMore");
            same(names(db.listCollections().batchSize(size)), many, "collections");
            same(names(c.listIndexes().batchSize(size)), many + 1, "indexes");
            holds(s.view.count("getMore") - before >= 2 * (many / size), "the lists came in too few batches");
        } finally {
            db.drop();
        }
    }

    private static int names(MongoIterable<Document> list) {
        Set<String> seen = new HashSet<>();
        list.forEach(one -> holds(seen.add(one.getString("name")), one + " came twice"));
        return seen.size();
    }

    static void killCursors(Scenario s) {
        MongoCollection<Document> c = s.collection("kill_cursors", numbered(100));
        List<MongoCursor<Document>> open = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            open.add(c.find().batchSize(5).cursor());
        }
        List<Long> killed = open.stream().map(cursor -> cursor.getServerCursor().getId()).toList();
        List<Long> all = Stream.concat(Stream.of(77L), killed.stream()).toList();
        Document reply = s.db.runCommand(doc("killCursors", "kill_cursors", "cursors", all));
        same(reply.get("cursorsKilled"), killed, "cursors killed");
        same(reply.get("cursorsNotFound"), List.of(77L), "cursors not found");
        for (MongoCursor<Document> cursor : open) {
            for (int i = 0; i < 5; i++) {
                cursor.next();
            }
            fails(43, cursor::next);
        }
    }
}
