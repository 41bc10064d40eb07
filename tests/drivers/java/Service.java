package drivers;

import static drivers.Scenario.doc;
import static drivers.Scenario.fails;
import static drivers.Scenario.holds;
import static drivers.Scenario.ids;
import static drivers.Scenario.numbered;
import static drivers.Scenario.same;
import static drivers.Scenario.span;

import com.mongodb.ConnectionString;
import com.mongodb.MongoCredential;
import com.mongodb.MongoWriteConcernException;
import com.mongodb.ServerApi;
import com.mongodb.ServerApiVersion;
import com.mongodb.WriteConcern;
import com.mongodb.client.MongoClient;
import com.mongodb.client.MongoCollection;
import com.mongodb.client.MongoDatabase;
import com.mongodb.client.gridfs.GridFSBuckets;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import org.bson.BsonDocument;
import org.bson.Document;
import org.bson.types.Binary;

/** Sizes, deadlines, retries, the proxy's own answers, and the end. */
final class Service {
    private static final int MEBIBYTE = 1 << 20;

    private Service() {}

    private static byte[] random(int size) {
        byte[] data = new byte[size];
        new Random().nextBytes(data);
        return data;
    }

    static void largeDocument(Scenario s) {
        MongoCollection<Document> c = s.collection("large");
        Binary data = new Binary(random(15 * MEBIBYTE));
        c.insertOne(doc("_id", 1, "data", data));
        holds(c.find().first().get("data").equals(data), "the document came back different");
    }

    static void largeBulk(Scenario s) {
        MongoCollection<Document> c = s.collection("large_bulk");
        Binary data = new Binary(random(1_000_000));
        int before = s.view.count("insert");
        c.insertMany(Arrays.asList(numbered(47, i -> doc("data", data))));
        // This driver makes no message that is much larger than one document may be.
        same(s.view.count("insert") - before, 3, "messages that the documents took");
        int read = 0;
        for (Document document : c.find().batchSize(47)) {
            holds(document.get("data").equals(data), "a document came back different");
            read++;
        }
        same(read, 47, "documents");
        c.drop();
    }

    static void gridfs(Scenario s) throws Exception {
        var bucket = GridFSBuckets.create(s.db);
        byte[] data = random(20 * MEBIBYTE);
        var file = bucket.uploadFromStream("file", new ByteArrayInputStream(data));
        ByteArrayOutputStream found = new ByteArrayOutputStream();
        bucket.downloadToStream(file, found);
        MessageDigest hash = MessageDigest.getInstance("SHA-256");
        holds(Arrays.equals(hash.digest(found.toByteArray()), hash.digest(data)), "the file came back different");
        bucket.delete(file);
        same(s.db.getCollection("fs.chunks").countDocuments(), 0L, "chunks left");
    }

    static void unacknowledgedWrite(Scenario s) {
        s.collection("unacknowledged");
        // One socket only: the read comes right behind the write.
        View view = new View();
        try (MongoClient client = s.connect(view, b -> b.applyToConnectionPoolSettings(pool -> pool.maxSize(1)))) {
            MongoCollection<Document> c = client.getDatabase(s.db.getName()).getCollection("unacknowledged");
            MongoCollection<Document> silent = c.withWriteConcern(WriteConcern.UNACKNOWLEDGED);
            for (int i = 0; i < 100; i++) {
                holds(!silent.insertOne(doc("_id", i)).wasAcknowledged(), "the write was acknowledged");
                same(c.find(doc("_id", i)).first(), doc("_id", i), "own write");
            }
            silent.insertOne(doc("_id", 1));
            silent.updateMany(doc(), doc("$set", doc("n", 1)));
            same(c.countDocuments(doc("n", 1)), 100L, "count");
            silent.deleteMany(doc("_id", doc("$lt", 40)));
            same(c.countDocuments(), 60L, "count after the deletion");
            view.verifyCalm();
        }
    }

    static void stableApi(Scenario s) {
        s.collection("stable_api", numbered(50));
        View view = new View();
        ServerApi strict = ServerApi.builder().version(ServerApiVersion.V1).strict(true).deprecationErrors(true).build();
        try (MongoClient client = s.connect(view, b -> b.serverApi(strict))) {
            MongoDatabase db = client.getDatabase(s.db.getName());
            MongoCollection<Document> c = db.getCollection("stable_api");
            c.insertOne(doc("_id", 50));
            same(ids(c.find().sort(doc("_id", 1)).batchSize(20)), span(0, 51), "ids");
            same(c.countDocuments(), 51L, "count");
            same(db.runCommand(doc("ping", 1)).get("ok"), 1.0, "ok of ping");
            fails(323, () -> c.distinct("_id", Integer.class).first());
            for (String command : List.of("whatsmyuri", "serverStatus", "connPoolStats")) {
                fails(323, () -> client.getDatabase("admin").runCommand(doc(command, 1)));
            }
            view.verifyCalm();
        }
        same(s.db.getCollection("stable_api").distinct("_id", Integer.class).into(new ArrayList<>()).size(), 51, "distinct");
    }

    static void maxTime(Scenario s) {
        MongoCollection<Document> c = s.collection("max_time", numbered(3));
        Document slow = doc("$where", "sleep(1000) || true");
        fails(50, () -> c.find(slow).maxTime(50, TimeUnit.MILLISECONDS).first());
        // Here the driver itself turns what is left of its own timeout into the maxTimeMS of what it sends.
        Document ping = doc("_id", 1);
        var recording = s.view.record(() -> c.withTimeout(5, TimeUnit.SECONDS).find(ping).first());
        holds(recording.named("find").get(0).containsKey("maxTimeMS"), "a find with a timeout has no maxTimeMS");
        same(c.countDocuments(), 3L, "count afterwards");
    }

    static void writeConcern(Scenario s) {
        MongoCollection<Document> c = s.collection("write_concern");
        MongoCollection<Document> majority = c.withWriteConcern(WriteConcern.MAJORITY.withJournal(true));
        holds(majority.insertOne(doc("_id", 1)).wasAcknowledged(), "the write was not acknowledged");
        // There is one member only. The write itself is done.
        Map.of(new WriteConcern(2), 100, new WriteConcern("none"), 79).forEach((concern, code) -> {
            try {
                c.withWriteConcern(concern).insertOne(doc("_id", code));
                throw new AssertionError("no error under " + concern);
            } catch (MongoWriteConcernException error) {
                same(error.getWriteConcernError().getCode(), code, "code under " + concern);
            }
        });
        same(c.countDocuments(), 3L, "count");
    }

    /** The server answers one command of this name as told; what is closed ends it. */
    private static AutoCloseable failNext(Scenario s, String command, Object... how) {
        Document data = doc("failCommands", List.of(command));
        data.putAll(doc(how));
        s.admin(doc("configureFailPoint", "failCommand", "mode", doc("times", 1), "data", data));
        return () -> s.admin(doc("configureFailPoint", "failCommand", "mode", "off"));
    }

    static void retryableReads(Scenario s) throws Exception {
        MongoCollection<Document> c = s.collection("retryable_reads", numbered(50));
        Map<String, Runnable> reads = Map.of(
                "find", () -> same(c.find(doc("_id", 7)).first(), doc("_id", 7), "document"),
                "aggregate", () -> same(c.countDocuments(), 50L, "count"),
                "distinct", () -> c.distinct("_id", Integer.class).first());
        for (var read : reads.entrySet()) {
            for (int code : List.of(6, 89, 262)) {
                View.Recording recording;
                try (var off = failNext(s, read.getKey(), "errorCode", code)) {
                    recording = s.view.record(read.getValue());
                }
                String what = read.getKey() + " that gets code " + code + " once: ";
                same(recording.named(read.getKey()).size(), 2, what + "attempts");
                same(recording.failures(), List.of(read.getKey()), what + "failures");
            }
        }
    }

    static void retryableWrites(Scenario s) throws Exception {
        MongoCollection<Document> c = s.collection("retryable_writes", doc("_id", 0, "n", 0));
        for (int code : List.of(6, 262)) {
            View.Recording recording;
            try (var off = failNext(s, "update", "errorCode", code)) {
                recording = s.view.record(() -> c.updateOne(doc("_id", 0), doc("$inc", doc("n", 1))));
            }
            List<BsonDocument> updates = recording.named("update");
            String what = "update that gets code " + code + " once: ";
            same(updates.size(), 2, what + "attempts");
            same(updates.get(1).get("txnNumber"), updates.get(0).get("txnNumber"), what + "txnNumber of the retry");
        }
        same(c.find().first().get("n"), 2, "what was done exactly twice");
        // Done, but in doubt: this driver ignores the label of such errors, and retries by a few codes only.
        Document concern = doc("code", 262, "errmsg", "in doubt");
        try (var off = failNext(s, "update", "writeConcernError", concern, "errorLabels", List.of("RetryableWriteError"))) {
            c.updateOne(doc("_id", 0), doc("$inc", doc("n", 1)));
            throw new AssertionError("the write concern error is lost");
        } catch (MongoWriteConcernException error) {
            same(error.getWriteConcernError().getCode(), 262, "code of the write concern error");
            holds(error.hasErrorLabel("RetryableWriteError"), "the label of the write concern error is lost");
        }
        same(c.find().first().get("n"), 3, "what was done once more");
        try (var off = failNext(s, "insert", "errorCode", 6)) {
            c.insertMany(List.of(doc("_id", 1), doc("_id", 2)));
        }
        same(c.countDocuments(), 3L, "count after an insert that was sent twice");
    }

    static void commands(Scenario s) {
        Document stats = s.admin(doc("connPoolStats", 1));
        holds(stats.get("hosts") instanceof Document && stats.containsKey("totalCreated"), "shape of connPoolStats");
        holds(s.admin(doc("whatsmyuri", 1)).getString("you").matches("127\\.0\\.0\\.1:\\d+"), "whatsmyuri");
        Document status = s.admin(doc("connectionStatus", 1)).get("authInfo", Document.class);
        MongoCredential credential = new ConnectionString(s.uri).getCredential();
        List<Document> due =
                credential == null ? List.of() : List.of(doc("user", credential.getUserName(), "db", "admin"));
        same(status.get("authenticatedUsers"), due, "users");
        Document hello = s.admin(doc("hello", 1));
        same(hello.get("isWritablePrimary"), true, "isWritablePrimary");
        if (s.wanted.equals("replicaset")) {
            same(hello.get("setName"), "rs0", "setName");
        } else {
            same(hello.get("msg"), "isdbgrid", "msg");
            for (String key : List.of("setName", "hosts", "me", "primary")) {
                holds(!hello.containsKey(key), "hello has the field " + key + " of a set");
            }
            holds(!stats.get("hosts", Document.class).isEmpty(), "connPoolStats names no server");
        }
        same(s.admin(doc("isMaster", 1)).get("ismaster"), true, "ismaster");
        same(s.admin(doc("buildInfo", 1)).get("ok"), 1.0, "ok of buildInfo");
        same(s.db.runCommand(doc("dbStats", 1)).get("db"), s.db.getName(), "dbStats");
    }

    static void concurrency(Scenario s) throws Exception {
        // Every reply carries the token of its request: one that went to the wrong thread shows.
        MongoCollection<Document> c =
                s.collection("concurrency", numbered(50, i -> doc("text", ("document " + i).repeat(20))));
        List<Callable<Object>> workers = new ArrayList<>();
        for (int worker = 0; worker < 50; worker++) {
            int i = worker;
            workers.add(() -> {
                for (int n = 0; n < 20; n++) {
                    String token = i + ":" + n + ":" + System.nanoTime();
                    Document fields = doc("text", 1, "token", doc("$literal", token));
                    Document wanted = doc("_id", i, "text", ("document " + i).repeat(20), "token", token);
                    same(c.find(doc("_id", i)).projection(fields).first(), wanted, "reply");
                }
                return null;
            });
        }
        Scenario.atOnce(workers);
    }

    static void close(Scenario s) {
        s.db.drop();
        s.view.verifyCalm();
        s.client.close();
        s.view.verifyKept();
    }
}
