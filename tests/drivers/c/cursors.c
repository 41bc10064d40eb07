/* Cursors of every kind, and change streams. */

#include "scenario.h"

#include <time.h>

void check_batches(void) {
    enum { DOCUMENTS = 12000 };
    mongoc_collection_t *c = collection("batches");
    numbered(c, DOCUMENTS, "'text': 'document %d'");
    int before = sent("getMore");
    bool *seen = calloc(DOCUMENTS, sizeof *seen);
    int documents = 0, twice = 0, different = 0;
    mongoc_cursor_t *cursor = find(c, doc("{}"), doc("{'batchSize': 1000}"));
    for (const bson_t *found; mongoc_cursor_next(cursor, &found); documents++) {
        char due[32];
        int64_t id = number(found, "_id");
        snprintf(due, sizeof due, "document %d", (int)id);
        different += strcmp(text(found, "text"), due) != 0;
        twice += seen[id];
        seen[id] = true;
    }
    free(seen);
    must(!mongoc_cursor_error(cursor, &error), "find");
    mongoc_cursor_destroy(cursor);
    same(documents, DOCUMENTS, "documents");
    same(twice, 0, "documents that came twice");
    same(different, 0, "documents that came back different");
    holds(sent("getMore") - before >= 11, "the result came in too few batches");
    bson_t *reply = empty();
    must(mongoc_collection_delete_many(c, doc("{}"), NULL, reply, &error), "delete_many");
    same(number(reply, "deletedCount"), DOCUMENTS, "deleted");
    mongoc_collection_destroy(c);
}

void check_cursor(void) {
    mongoc_collection_t *c = collection("cursor");
    numbered(c, 5000, "");
    has_ids(find(c, doc("{}"), doc("{'sort': {'_id': 1}, 'batchSize': 100}")), 0, 5000, "id");
    bson_t *part = doc("{'sort': {'_id': 1}, 'batchSize': 100, 'skip': 10, 'limit': 250}");
    has_ids(find(c, doc("{}"), part), 10, 260, "id after skip and limit");
    mongoc_collection_destroy(c);
}

void check_cursor_close(void) {
    mongoc_collection_t *c = collection("cursor_close");
    numbered(c, 100, "");
    mongoc_cursor_t *cursor = find(c, doc("{}"), doc("{'sort': {'_id': 1}, 'batchSize': 10}"));
    for (int i = 0; i < 15; i++) same(number(next(cursor), "_id"), i, "id");
    int64_t id = mongoc_cursor_get_id(cursor);
    holds(id != 0, "the cursor is exhausted already");
    mongoc_cursor_destroy(cursor);
    gone(c, id);
    mongoc_collection_destroy(c);
}

void check_cursor_timeout_free(void) {
    mongoc_collection_t *c = collection("cursor_timeout_free");
    numbered(c, 100, "");
    for (int endless = 0; endless < 2; endless++) {
        const char *setting = endless ? "true" : "false";
        bson_t *options = doc("{'sort': {'_id': 1}, 'batchSize': 10, 'noCursorTimeout': %s}", setting);
        mongoc_cursor_t *cursor = find(c, doc("{}"), options);
        same(number(next(cursor), "_id"), 0, "first id");
        same(number(idle_cursor(mongoc_cursor_get_id(cursor)), "cursor.noCursorTimeout"), endless, "noCursorTimeout");
        has_ids(cursor, 1, 100, "ids");
    }
    mongoc_collection_destroy(c);
}

/* The next change; the driver returns without one whenever it has waited once. */
static const bson_t *change(mongoc_change_stream_t *stream) {
    time_t deadline = time(NULL) + 20;
    const bson_t *found;
    do {
        if (mongoc_change_stream_next(stream, &found)) return found;
        if (mongoc_change_stream_error_document(stream, &error, &found)) must(false, "change stream");
    } while (time(NULL) < deadline);
    wrong("there is no change within 20 s");
}

static void has_changes(mongoc_change_stream_t *stream, int from, int to, const char *what) {
    for (int i = from; i < to; i++) same(number(change(stream), "documentKey._id"), i, what);
}

static void insert_twenty(mongoc_client_t *mine, int i, void *context) {
    (void)i;
    await_sent("getMore", *(int *)context);
    mongoc_collection_t *c = open_collection(mine, "change_stream");
    for (int id = 0; id < 20; id++) insert(c, id, NULL);
    mongoc_collection_destroy(c);
}

static void read_twenty(mongoc_client_t *mine, int i, void *context) {
    if (i == 0) {
        insert_twenty(mine, i, context);
        return;
    }
    mongoc_collection_t *c = open_collection(mine, "change_stream");
    mongoc_change_stream_t *stream = mongoc_collection_watch(c, doc("{}"), doc("{'maxAwaitTimeMS': 500}"));
    int64_t cursor = last_cursor();
    bson_t *token = NULL;
    for (int id = 0; id < 20; id++) {
        const bson_t *found = change(stream);
        same(number(found, "fullDocument._id"), id, "insert seen");
        if (id == 9) token = copy(mongoc_change_stream_get_resume_token(stream));
    }
    mongoc_change_stream_destroy(stream);
    gone(c, cursor);
    bson_t *options = empty();
    BSON_APPEND_DOCUMENT(options, "resumeAfter", token);
    stream = mongoc_collection_watch(c, doc("{}"), options);
    has_changes(stream, 10, 20, "insert after resuming");
    mongoc_change_stream_destroy(stream);
    mongoc_collection_destroy(c);
}

void check_change_stream(void) {
    mongoc_collection_destroy(collection("change_stream"));
    int before = sent("getMore");
    at_once(2, read_twenty, &before);
}

void check_change_stream_resume(void) {
    mongoc_collection_t *c = collection("change_stream_resume");
    mongoc_change_stream_t *stream = mongoc_collection_watch(c, doc("{}"), doc("{'batchSize': 3}"));
    int64_t killed = last_cursor();
    for (int i = 0; i < 10; i++) insert(c, i, NULL);
    has_changes(stream, 0, 4, "insert seen");
    bson_t *command = doc("{'killCursors': 'change_stream_resume', 'cursors': [{'$numberLong': '%lld'}]}",
                          (long long)killed);
    same(number(run(database, command), "cursorsKilled.0"), killed, "cursor killed");
    for (int i = 10; i < 20; i++) insert(c, i, NULL);
    has_changes(stream, 4, 20, "insert seen after the kill");
    holds(last_cursor() != killed, "the stream did not resume");
    insert(c, 20, NULL);
    has_changes(stream, 20, 21, "next insert");
    mongoc_change_stream_destroy(stream);
    mongoc_collection_destroy(c);
}

enum { STREAMS = 8, INSERTS = 10 };

static void watch_or_insert(mongoc_client_t *mine, int i, void *context) {
    if (i < STREAMS) {
        /* The driver sends the aggregate when the stream is made. */
        char name[32];
        snprintf(name, sizeof name, "change_stream_%d", i);
        mongoc_collection_t *c = open_collection(mine, name);
        mongoc_change_stream_t *stream = mongoc_collection_watch(c, doc("{}"), NULL);
        has_changes(stream, 100 * i, 100 * i + INSERTS, "insert seen");
        mongoc_change_stream_destroy(stream);
        mongoc_collection_destroy(c);
        return;
    }
    await_sent("getMore", *(int *)context + STREAMS - 1);
    for (int n = 0; n < INSERTS; n++) {
        for (int stream = 0; stream < STREAMS; stream++) {
            char name[32];
            snprintf(name, sizeof name, "change_stream_%d", stream);
            mongoc_collection_t *c = open_collection(mine, name);
            insert(c, 100 * stream + n, NULL);
            mongoc_collection_destroy(c);
        }
    }
}

void check_change_stream_many(void) {
    for (int i = 0; i < STREAMS; i++) {
        char name[32];
        snprintf(name, sizeof name, "change_stream_%d", i);
        mongoc_collection_destroy(collection(name));
    }
    int before = sent("getMore");
    at_once(STREAMS + 1, watch_or_insert, &before);
}

static void tail(mongoc_client_t *mine, int i, void *context) {
    mongoc_collection_t *c = open_collection(mine, "tailable");
    if (i == 0) {
        await_sent("getMore", *(int *)context);
        for (int id = 3; id < 10; id++) insert(c, id, NULL);
    } else {
        mongoc_cursor_t *cursor =
            find(c, doc("{}"), doc("{'tailable': true, 'awaitData': true, 'maxAwaitTimeMS': 500}"));
        time_t deadline = time(NULL) + 20;
        for (int id = 0; id < 10; id++) {
            const bson_t *found;
            while (!mongoc_cursor_next(cursor, &found)) {
                must(!mongoc_cursor_error(cursor, &error), "tailable cursor");
                holds(time(NULL) < deadline, "document %d did not come", id);
            }
            same(number(found, "_id"), id, "id");
        }
        int64_t open = mongoc_cursor_get_id(cursor);
        holds(open != 0, "the cursor has ended");
        mongoc_cursor_destroy(cursor);
        gone(c, open);
    }
    mongoc_collection_destroy(c);
}

void check_tailable(void) {
    mongoc_collection_t *c = collection("tailable");
    must(mongoc_collection_drop(c, &error), "drop");
    run(database, doc("{'create': 'tailable', 'capped': true, 'size': 1048576}"));
    numbered(c, 3, "");
    mongoc_collection_destroy(c);
    int before = sent("getMore");
    at_once(2, tail, &before);
}

/* The driver's own functions for lists leave the size of the first batch to the server. */
static int names(const char *db, bson_t *command, int most) {
    bson_t *reply = bson_copy(run(db, command));
    bson_t *options = doc("{'batchSize': %d}", (int)number(command, "cursor.batchSize"));
    mongoc_cursor_t *cursor = mongoc_cursor_new_from_command_reply_with_opts(client, reply, options);
    char **seen = calloc(most, sizeof *seen);
    int found = 0;
    for (const bson_t *one; mongoc_cursor_next(cursor, &one); found++) {
        const char *name = text(one, "name");
        holds(found < most, "too many names");
        for (int i = 0; i < found; i++) holds(strcmp(seen[i], name) != 0, "%s came twice", name);
        seen[found] = strdup(name);
    }
    must(!mongoc_cursor_error(cursor, &error), "list");
    mongoc_cursor_destroy(cursor);
    for (int i = 0; i < found; i++) free(seen[i]);
    free(seen);
    return found;
}

void check_list_cursors(void) {
    /* More than one batch of each. */
    enum { MANY = 40, SIZE = 6 };
    char name[80];
    snprintf(name, sizeof name, "%s_list", database);
    mongoc_database_t *db = mongoc_client_get_database(client, name);
    must(mongoc_database_drop(db, &error), "drop the database");
    char list[4096] = "";
    for (int i = 0; i < MANY; i++) {
        run(name, doc("{'create': 'c%d'}", i));
        size_t end = strlen(list);
        snprintf(list + end, sizeof list - end, "%s{'key': {'k%d': 1}, 'name': 'k%d_1'}", i ? ", " : "", i, i);
    }
    run(name, doc("{'createIndexes': 'c0', 'indexes': [%s]}", list));
    int before = sent("getMore");
    bson_t *command = doc("{'listCollections': 1, 'cursor': {'batchSize': %d}}", SIZE);
    same(names(name, command, MANY + 1), MANY, "collections");
    command = doc("{'listIndexes': 'c0', 'cursor': {'batchSize': %d}}", SIZE);
    same(names(name, command, MANY + 2), MANY + 1, "indexes");
    holds(sent("getMore") - before >= 2 * (MANY / SIZE), "the lists came in too few batches");
    must(mongoc_database_drop(db, &error), "drop the database");
    mongoc_database_destroy(db);
}

void check_kill_cursors(void) {
    mongoc_collection_t *c = collection("kill_cursors");
    numbered(c, 100, "");
    mongoc_cursor_t *open[3];
    long long id[3];
    for (int i = 0; i < 3; i++) {
        open[i] = find(c, doc("{}"), doc("{'batchSize': 5}"));
        next(open[i]);
        id[i] = mongoc_cursor_get_id(open[i]);
    }
    bson_t *reply = run(database, doc("{'killCursors': 'kill_cursors', 'cursors': [{'$numberLong': '77'}, "
                                      "{'$numberLong': '%lld'}, {'$numberLong': '%lld'}, {'$numberLong': '%lld'}]}",
                                      id[0], id[1], id[2]));
    same(number(reply, "cursorsNotFound.0"), 77, "cursor not found");
    for (int i = 0; i < 3; i++) {
        char path[32];
        snprintf(path, sizeof path, "cursorsKilled.%d", i);
        same(number(reply, path), id[i], "cursor killed");
        for (int n = 1; n < 5; n++) next(open[i]);
        same(cursor_code(open[i]), 43, "code of a killed cursor");
    }
    mongoc_collection_destroy(c);
}
