package drivers;

import com.mongodb.ConnectionString;
import com.mongodb.MongoBulkWriteException;
import com.mongodb.MongoClientSettings;
import com.mongodb.MongoCompressor;
import com.mongodb.MongoException;
import com.mongodb.client.ClientSession;
import com.mongodb.client.MongoClient;
import com.mongodb.client.MongoClients;
import com.mongodb.client.MongoCollection;
import com.mongodb.client.MongoCursor;
import com.mongodb.client.MongoDatabase;
import com.mongodb.client.MongoIterable;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.IntFunction;
import java.util.stream.IntStream;
import org.bson.Document;

/**
 * The driver scenario for the Java driver: each check prints one line, `ok NAME`, `FAIL NAME: reason` or `n/a NAME: why`.
 *
 * <p>{@code Scenario URI [--view sharded|replicaset|loadbalanced] [--compressor zlib|snappy|zstd]}
 *
 * <p>The view is what the driver's own monitoring must say about the address. The README of the drivers explains the rest.
 */
public final class Scenario {
    /** Of one check, seconds. {@code withTransaction} alone may start over for 120 s. */
    private static final int LONGEST = 30;

    interface Check {
        void run(Scenario s) throws Exception;
    }

    /** The driver or the server has no such thing. */
    static final class Lacking extends RuntimeException {
        private static final long serialVersionUID = 1;

        Lacking(String why) {
            super(why);
        }
    }

    final String uri;
    final String wanted;
    final String compressor;
    final View view = new View();
    final MongoClient client;
    final MongoDatabase db;

    private Scenario(String uri, String wanted, String compressor) {
        this.uri = uri;
        this.wanted = wanted;
        this.compressor = compressor;
        client = connect(view, settings -> {});
        db = client.getDatabase("drivers_java_" + wanted + Objects.requireNonNullElse(compressor, ""));
    }

    public static void main(String[] arguments) {
        String view = "sharded";
        String compressor = null;
        boolean understood = arguments.length % 2 == 1;
        for (int i = 1; understood && i < arguments.length; i += 2) {
            switch (arguments[i]) {
                case "--view" -> view = arguments[i + 1];
                case "--compressor" -> compressor = arguments[i + 1];
                default -> understood = false;
            }
        }
        if (!understood || !View.WANTED.containsKey(view)) {
            System.err.println("usage: Scenario URI [--view VIEW] [--compressor NAME]");
            System.exit(2);
        }
        Scenario scenario = new Scenario(arguments[0], view, compressor);
        int code = 0;
        for (Map.Entry<String, Check> check : checks().entrySet()) {
            String line = verdict(check.getKey(), check.getValue(), scenario);
            System.out.println(line);
            if (line.startsWith("FAIL ")) {
                code = 1;
                if (check.getKey().equals("connect")) {
                    break;
                }
            }
        }
        System.out.println("finished");
        System.exit(code);
    }

    /** Under the same names in every language. */
    private static Map<String, Check> checks() {
        Map<String, Check> checks = new LinkedHashMap<>();
        checks.put("connect", Documents::connect);
        checks.put("compression", Documents::compression);
        checks.put("crud", Documents::crud);
        checks.put("catalog", Documents::catalog);
        checks.put("bulk_write", Documents::bulkWrite);
        checks.put("bulk_write_client", Documents::bulkWriteClient);
        checks.put("batches", Cursors::batches);
        checks.put("cursor", Cursors::cursor);
        checks.put("cursor_close", Cursors::cursorClose);
        checks.put("cursor_timeout_free", Cursors::cursorTimeoutFree);
        checks.put("aggregate", Documents::aggregate);
        checks.put("aggregate_out", Documents::aggregateOut);
        checks.put("collation", Documents::collation);
        checks.put("explain", Documents::explain);
        checks.put("let_and_comment", Documents::letAndComment);
        checks.put("hint", Documents::hint);
        checks.put("list_cursors", Cursors::listCursors);
        checks.put("kill_cursors", Cursors::killCursors);
        checks.put("tailable", Cursors::tailable);
        checks.put("read_options", Sessions::readOptions);
        checks.put("read_preferences", Sessions::readPreferences);
        checks.put("causal_reads", Sessions::causalReads);
        checks.put("sessions", Sessions::sessions);
        checks.put("snapshot_reads", Sessions::snapshotReads);
        checks.put("transaction_commit", Sessions::transactionCommit);
        checks.put("transaction_abort", Sessions::transactionAbort);
        checks.put("transaction_conflict", Sessions::transactionConflict);
        checks.put("transaction_cursor", Sessions::transactionCursor);
        checks.put("transaction_errors", Sessions::transactionErrors);
        checks.put("change_stream", Cursors::changeStream);
        checks.put("change_stream_resume", Cursors::changeStreamResume);
        checks.put("change_stream_many", Cursors::changeStreamMany);
        checks.put("large_document", Service::largeDocument);
        checks.put("large_bulk", Service::largeBulk);
        checks.put("gridfs", Service::gridfs);
        checks.put("unacknowledged_write", Service::unacknowledgedWrite);
        checks.put("stable_api", Service::stableApi);
        checks.put("max_time", Service::maxTime);
        checks.put("write_concern", Service::writeConcern);
        checks.put("retryable_reads", Service::retryableReads);
        checks.put("retryable_writes", Service::retryableWrites);
        checks.put("error_codes", Documents::errorCodes);
        checks.put("commands", Service::commands);
        checks.put("concurrency", Service::concurrency);
        checks.put("monitoring_quiet", s -> s.view.verifyCalm());
        checks.put("view", s -> s.view.verify(s.wanted));
        checks.put("close", Service::close);
        return checks;
    }

    /** Runs one check; one that takes too long is left behind. */
    private static String verdict(String name, Check check, Scenario scenario) {
        ExecutorService thread = threads(1);
        Future<?> result = thread.submit(() -> {
            check.run(scenario);
            return null;
        });
        try {
            result.get(LONGEST, TimeUnit.SECONDS);
            return "ok " + name;
        } catch (TimeoutException late) {
            return "FAIL " + name + ": not done after " + LONGEST + " s";
        } catch (Exception failed) {
            Throwable cause = failed.getCause() == null ? failed : failed.getCause();
            String reason = String.valueOf(cause.getMessage()).replaceAll("\\s+", " ");
            if (cause instanceof Lacking) {
                return "n/a " + name + ": " + reason;
            }
            cause.printStackTrace();
            return "FAIL %s: %s: %.400s".formatted(name, cause.getClass().getSimpleName(), reason);
        } finally {
            thread.shutdownNow();
        }
    }

    /** Threads that do not keep the process. */
    static ExecutorService threads(int count) {
        return Executors.newFixedThreadPool(count, work -> {
            Thread thread = new Thread(work);
            thread.setDaemon(true);
            return thread;
        });
    }

    /** Runs all at once, each in a thread; the first that fails, fails the check. */
    static <T> List<T> atOnce(List<Callable<T>> works) throws Exception {
        ExecutorService threads = threads(works.size());
        try {
            List<T> results = new ArrayList<>();
            for (Future<T> result : works.stream().map(threads::submit).toList()) {
                results.add(result.get());
            }
            return results;
        } finally {
            threads.shutdownNow();
        }
    }

    /** Makes a client that is watched; {@code adjust} may change its settings. */
    MongoClient connect(View view, Consumer<MongoClientSettings.Builder> adjust) {
        MongoClientSettings.Builder settings = MongoClientSettings.builder()
                .applyConnectionString(new ConnectionString(uri))
                .applyToClusterSettings(b -> b.serverSelectionTimeout(10, TimeUnit.SECONDS));
        Tls.apply(uri, settings);
        view.watch(settings);
        if (compressor != null) {
            settings.compressorList(List.of(switch (compressor) {
                case "zlib" -> MongoCompressor.createZlibCompressor();
                case "snappy" -> MongoCompressor.createSnappyCompressor();
                case "zstd" -> MongoCompressor.createZstdCompressor();
                default -> throw new IllegalArgumentException(compressor);
            }));
        }
        adjust.accept(settings);
        return MongoClients.create(settings.build());
    }

    /** An empty collection that exists, or one with these documents. */
    MongoCollection<Document> collection(String name, Document... documents) {
        MongoCollection<Document> collection = db.getCollection(name);
        collection.drop();
        db.createCollection(name);
        if (documents.length > 0) {
            collection.insertMany(Arrays.asList(documents));
        }
        return collection;
    }

    /** Runs a command on the database admin. */
    Document admin(Document command) {
        return client.getDatabase("admin").runCommand(command);
    }

    /** The cursor must no longer exist on the server; one that does would answer 50738 to this session. */
    void gone(MongoCollection<Document> collection, long cursor) throws InterruptedException {
        Document getMore = doc("getMore", cursor, "collection", collection.getNamespace().getCollectionName());
        // A getMore that was running when the cursor was killed still holds it for a moment.
        for (long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(5); ; Thread.sleep(20)) {
            int code = codeOf(() -> db.runCommand(getMore));
            if (code == 43) {
                return;
            }
            holds(code == 143 && System.nanoTime() < deadline, "the cursor was not killed: code " + code + ", not 43");
        }
    }

    /** What the server says about a cursor that waits for its getMore. */
    Document idleCursor(long cursor) {
        Document found = client.getDatabase("admin").aggregate(List.of(
                doc("$currentOp", doc("idleCursors", true, "allUsers", true)),
                doc("$match", doc("type", "idleCursor", "cursor.cursorId", cursor)))).first();
        holds(found != null, "the server does not know the cursor");
        return found.get("cursor", Document.class);
    }

    static Document doc(Object... keysAndValues) {
        Document document = new Document();
        for (int i = 0; i < keysAndValues.length; i += 2) {
            document.append((String) keysAndValues[i], keysAndValues[i + 1]);
        }
        return document;
    }

    /** Documents whose _id counts from 0; {@code more} gives their other fields. */
    static Document[] numbered(int count, IntFunction<Document> more) {
        return IntStream.range(0, count).mapToObj(i -> {
            Document document = doc("_id", i);
            document.putAll(more.apply(i));
            return document;
        }).toArray(Document[]::new);
    }

    static Document[] numbered(int count) {
        return numbered(count, i -> doc());
    }

    static List<Integer> ids(MongoIterable<Document> documents) {
        List<Integer> found = new ArrayList<>();
        documents.forEach(document -> found.add(document.getInteger("_id")));
        return found;
    }

    static List<Integer> ids(MongoCursor<Document> rest) {
        List<Integer> found = new ArrayList<>();
        rest.forEachRemaining(document -> found.add(document.getInteger("_id")));
        return found;
    }

    static List<Integer> span(int from, int to) {
        return IntStream.range(from, to).boxed().toList();
    }

    static void same(Object found, Object wanted, String what) {
        if (!Objects.equals(found, wanted)) {
            throw new AssertionError("%s is %.200s, not %.200s".formatted(what, found, wanted));
        }
    }

    static void holds(boolean good, String what) {
        if (!good) {
            throw new AssertionError(what);
        }
    }

    /** The operation must fail with this server code; returns the error. */
    static MongoException fails(int code, Runnable operation) {
        try {
            operation.run();
        } catch (MongoException error) {
            same(error.getCode(), code, "code of " + error.getMessage());
            return error;
        }
        throw new AssertionError("no error, code " + code + " was due");
    }

    /** The bulk write must fail in these of its writes, because of a duplicate key. */
    static void failsIn(List<Integer> indexes, Runnable operation) {
        try {
            operation.run();
        } catch (MongoBulkWriteException error) {
            error.getWriteErrors().forEach(one -> same(one.getCode(), 11000, "code"));
            same(error.getWriteErrors().stream().map(one -> one.getIndex()).toList(), indexes, "writes that failed");
            return;
        }
        throw new AssertionError("no bulk write error");
    }

    static int codeOf(Runnable operation) {
        try {
            operation.run();
            return 0;
        } catch (MongoException error) {
            return error.getCode();
        }
    }

    /** Runs the work as a transaction, which the driver starts over where it must. */
    <T> T transaction(Function<ClientSession, T> work) {
        try (ClientSession session = client.startSession()) {
            return session.withTransaction(() -> work.apply(session));
        }
    }
}
