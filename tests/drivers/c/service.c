/* Sizes, deadlines, retries, the proxy's own answers, and what the driver thinks of the server in the end. */

#include "scenario.h"

#include <time.h>

static void large(mongoc_collection_t *c, int documents, int size) {
    uint8_t *data = random_bytes(size);
    const bson_t *all[8];
    for (int i = 0; i < documents; i++) {
        bson_t *document = doc("{'_id': %d}", i);
        BSON_APPEND_BINARY(document, "data", BSON_SUBTYPE_BINARY, data, size);
        all[i] = document;
    }
    int before = sent("insert");
    must(mongoc_collection_insert_many(c, all, documents, NULL, NULL, &error), "insert_many");
    same(sent("insert") - before, 1, "messages that the documents took");
    mongoc_cursor_t *cursor = find(c, doc("{}"), doc("{'sort': {'_id': 1}}"));
    for (int i = 0; i < documents; i++) {
        bson_iter_t field;
        uint32_t length;
        const uint8_t *bytes;
        holds(bson_iter_init_find(&field, next(cursor), "data"), "a document came back without its data");
        bson_iter_binary(&field, NULL, &length, &bytes);
        holds((int)length == size && memcmp(bytes, data, size) == 0, "a document came back different");
    }
    ends(cursor);
    must(mongoc_collection_drop(c, &error), "drop");
    mongoc_collection_destroy(c);
}

void check_large_document(void) { large(collection("large"), 1, 15 * 1024 * 1024); }

void check_large_bulk(void) { large(collection("large_bulk"), 4, 47 * 1000 * 1000 / 4); }

void check_gridfs(void) {
    enum { SIZE = 20 * 1024 * 1024 };
    mongoc_database_t *db = open_database();
    mongoc_gridfs_bucket_t *bucket = mongoc_gridfs_bucket_new(db, NULL, NULL, &error);
    must(bucket != NULL, "make a bucket");
    uint8_t *data = random_bytes(SIZE), *found = random_bytes(SIZE + 1);
    bson_value_t file;
    mongoc_stream_t *stream = mongoc_gridfs_bucket_open_upload_stream(bucket, "file", NULL, &file, &error);
    must(stream != NULL, "open an upload stream");
    same(mongoc_stream_write(stream, data, SIZE, -1), SIZE, "bytes written");
    same(mongoc_stream_close(stream), 0, "close");
    must(!mongoc_gridfs_bucket_stream_error(stream, &error), "upload");
    mongoc_stream_destroy(stream);
    stream = mongoc_gridfs_bucket_open_download_stream(bucket, &file, &error);
    must(stream != NULL, "open a download stream");
    ssize_t length = 0, more;
    while ((more = mongoc_stream_read(stream, found + length, SIZE + 1 - length, 0, -1)) > 0) length += more;
    must(!mongoc_gridfs_bucket_stream_error(stream, &error), "download");
    mongoc_stream_destroy(stream);
    same(length, SIZE, "bytes read");
    holds(memcmp(found, data, SIZE) == 0, "the file came back different");
    must(mongoc_gridfs_bucket_delete_by_id(bucket, &file, &error), "delete the file");
    mongoc_gridfs_bucket_destroy(bucket);
    mongoc_database_destroy(db);
    mongoc_collection_t *chunks = open_collection(client, "fs.chunks");
    same(count(chunks, doc("{}"), NULL), 0, "chunks left");
    mongoc_collection_destroy(chunks);
}

void check_unacknowledged_write(void) {
    /* A client of this driver has one socket: the read comes right behind the write. */
    mongoc_collection_t *c = collection("unacknowledged");
    bson_t *silent = doc("{'writeConcern': {'w': 0}}");
    for (int i = 0; i < 100; i++) {
        bson_t *reply = empty();
        must(mongoc_collection_insert_one(c, doc("{'_id': %d}", i), silent, reply, &error), "insert_one");
        holds(!has(reply, "insertedCount"), "the write was acknowledged");
        same(number(find_one(c, doc("{'_id': %d}", i), NULL), "_id"), i, "own write");
    }
    must(mongoc_collection_insert_one(c, doc("{'_id': 1}"), silent, NULL, &error), "insert_one");
    bson_t *set = doc("{'$set': {'n': 1}}");
    must(mongoc_collection_update_many(c, doc("{}"), set, silent, NULL, &error), "update_many");
    same(count(c, doc("{'n': 1}"), NULL), 100, "count");
    must(mongoc_collection_delete_many(c, doc("{'_id': {'$lt': 40}}"), silent, NULL, &error), "delete_many");
    same(count(c, doc("{}"), NULL), 60, "count after the deletion");
    mongoc_collection_destroy(c);
}

void check_stable_api(void) {
    mongoc_collection_t *c = collection("stable_api");
    numbered(c, 50, "");
    mongoc_collection_destroy(c);
    mongoc_server_api_t *api = mongoc_server_api_new(MONGOC_SERVER_API_V1);
    mongoc_server_api_strict(api, true);
    mongoc_server_api_deprecation_errors(api, true);
    struct view *watched = new_view();
    mongoc_client_pool_t *strict = another_pool(10000, watched, api);
    mongoc_server_api_destroy(api);
    mongoc_client_t *mine = mongoc_client_pool_pop(strict);
    c = open_collection(mine, "stable_api");
    insert(c, 50, NULL);
    has_ids(find(c, doc("{}"), doc("{'sort': {'_id': 1}, 'batchSize': 20}")), 0, 51, "ids");
    same(count(c, doc("{}"), NULL), 51, "count");
    must(mongoc_client_command_simple(mine, "admin", doc("{'ping': 1}"), NULL, NULL, &error), "ping");
    bson_t *distinct = doc("{'distinct': 'stable_api', 'key': '_id'}");
    fails(323, mongoc_client_command_simple(mine, database, distinct, NULL, NULL, &error));
    static const char *const others[] = {"whatsmyuri", "serverStatus", "connPoolStats"};
    for (int i = 0; i < 3; i++) {
        fails(323, mongoc_client_command_simple(mine, "admin", doc("{'%s': 1}", others[i]), NULL, NULL, &error));
    }
    run(database, distinct);
    verify_calm(watched);
    mongoc_collection_destroy(c);
    mongoc_client_pool_push(strict, mine);
    mongoc_client_pool_destroy(strict);
}

void check_max_time(void) {
    mongoc_collection_t *c = collection("max_time");
    numbered(c, 3, "");
    bson_t *slow = doc("{'$where': 'sleep(1000) || true'}");
    same(cursor_code(find(c, slow, doc("{'maxTimeMS': 50}"))), 50, "code of a find that takes too long");
    bson_t *command = doc("{'count': 'max_time', 'query': {'$where': 'sleep(1000) || true'}, 'maxTimeMS': 50}");
    fails(50, mongoc_client_command_simple(client, database, command, NULL, NULL, &error));
    same(count(c, doc("{}"), NULL), 3, "count afterwards");
    mongoc_collection_destroy(c);
}

void check_write_concern(void) {
    mongoc_collection_t *c = collection("write_concern");
    bson_t *reply = empty(), *majority = doc("{'writeConcern': {'w': 'majority', 'j': true}}");
    must(mongoc_collection_insert_one(c, doc("{'_id': 1}"), majority, reply, &error), "insert_one");
    same(number(reply, "insertedCount"), 1, "inserted");
    /* There is one member only. The write itself is done. */
    bson_t *two = doc("{'writeConcern': {'w': 2}}"), *none = doc("{'writeConcern': {'w': 'none'}}");
    fails(100, mongoc_collection_insert_one(c, doc("{'_id': 2}"), two, reply = empty(), &error));
    same(number(reply, "writeConcernErrors.0.code"), 100, "code under w:2");
    fails(79, mongoc_collection_insert_one(c, doc("{'_id': 3}"), none, reply = empty(), &error));
    same(number(reply, "writeConcernErrors.0.code"), 79, "code under w:none");
    same(count(c, doc("{}"), NULL), 3, "count");
    mongoc_collection_destroy(c);
}

/* The server answers one command of this name as told. */
static void fail_next(const char *command, const char *how) {
    run("admin", doc("{'configureFailPoint': 'failCommand', 'mode': {'times': 1}, "
                     "'data': {'failCommands': ['%s'], %s}}", command, how));
}

static void fail_no_more(void) { run("admin", doc("{'configureFailPoint': 'failCommand', 'mode': 'off'}")); }

void check_retryable_reads(void) {
    mongoc_collection_t *c = collection("retryable_reads");
    numbered(c, 50, "");
    static const char *const reads[] = {"find", "aggregate", "distinct"};
    static const int codes[] = {6, 89};
    for (int read = 0; read < 3; read++) {
        for (int i = 0; i < 2; i++) {
            char how[64];
            snprintf(how, sizeof how, "'errorCode': %d", codes[i]);
            fail_next(reads[read], how);
            record();
            if (read == 0) {
                same(number(find_one(c, doc("{'_id': 7}"), NULL), "_id"), 7, "id");
            } else if (read == 1) {
                same(count(c, doc("{}"), NULL), 50, "count");
            } else {
                bson_t *command = doc("{'distinct': 'retryable_reads', 'key': '_id'}"), *reply = empty();
                bool good = mongoc_client_read_command_with_opts(client, database, command, NULL, NULL, reply, &error);
                must(good, "distinct");
            }
            same(recorded(reads[read]), 2, reads[read]);
            same(recorded_failures(), 1, "failures");
            fail_no_more();
        }
    }
    mongoc_collection_destroy(c);
}

void check_retryable_writes(void) {
    mongoc_collection_t *c = collection("retryable_writes");
    bson_t *zero = doc("{'_id': 0}"), *plus = doc("{'$inc': {'n': 1}}");
    insert(c, 0, NULL);
    /* Refused before it was done, twice, and done but in doubt. */
    static const char *const hows[] = {
        "'errorCode': 6",
        "'errorCode': 262",
        "'writeConcernError': {'code': 262, 'errmsg': 'in doubt'}, 'errorLabels': ['RetryableWriteError']",
    };
    for (int i = 0; i < 3; i++) {
        fail_next("update", hows[i]);
        record();
        must(mongoc_collection_update_one(c, zero, plus, NULL, NULL, &error), hows[i]);
        same(recorded("update"), 2, hows[i]);
        int64_t first = number(recorded_command("update", 0), "txnNumber");
        same(number(recorded_command("update", 1), "txnNumber"), first, "txnNumber of the retry");
        fail_no_more();
        same(number(find_one(c, zero, NULL), "n"), i + 1, "what was done exactly once");
    }
    fail_next("insert", "'errorCode': 6");
    const bson_t *two[] = {doc("{'_id': 1}"), doc("{'_id': 2}")};
    must(mongoc_collection_insert_many(c, two, 2, NULL, NULL, &error), "insert_many");
    fail_no_more();
    same(count(c, doc("{}"), NULL), 3, "count after an insert that was sent twice");
    mongoc_collection_destroy(c);
}

void check_commands(void) {
    bson_t *stats = run("admin", doc("{'connPoolStats': 1}"));
    holds(has(stats, "hosts") && has(stats, "totalCreated"), "shape of connPoolStats");
    const char *mine = text(run("admin", doc("{'whatsmyuri': 1}")), "you");
    holds(mine && strncmp(mine, "127.0.0.1:", 10) == 0 && atoi(mine + 10) > 0, "whatsmyuri is %s", mine);
    bson_t *status = run("admin", doc("{'connectionStatus': 1}"));
    const char *user = mongoc_uri_get_username(mongoc_client_get_uri(client));
    holds(has(status, "authInfo.authenticatedUsers"), "users");
    same(has(status, "authInfo.authenticatedUsers.0"), user != NULL, "whether there is a user");
    if (user) same_text(text(status, "authInfo.authenticatedUsers.0.user"), user, "user");
    holds(!has(status, "authInfo.authenticatedUsers.1"), "another user");
    bson_t *hello = run("admin", doc("{'hello': 1}"));
    same(number(hello, "isWritablePrimary"), 1, "isWritablePrimary");
    if (strcmp(wanted, "replicaset") == 0) {
        same_text(text(hello, "setName"), "rs0", "setName");
    } else {
        same_text(text(hello, "msg"), "isdbgrid", "msg");
        static const char *const of_a_set[] = {"setName", "hosts", "me", "primary"};
        for (int i = 0; i < 4; i++) holds(!has(hello, of_a_set[i]), "hello has the field %s of a set", of_a_set[i]);
    }
    same(number(run("admin", doc("{'isMaster': 1}")), "ismaster"), 1, "ismaster");
    same(number(run("admin", doc("{'buildInfo': 1}")), "ok"), 1, "ok of buildInfo");
    same_text(text(run(database, doc("{'dbStats': 1}")), "db"), database, "dbStats");
}

static void ask(mongoc_client_t *mine, int i, void *context) {
    (void)context;
    mongoc_collection_t *c = open_collection(mine, "concurrency");
    char due[32];
    snprintf(due, sizeof due, "document %d", i);
    for (int n = 0; n < 20; n++) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        char token[64];
        snprintf(token, sizeof token, "%d:%d:%lld", i, n, now.tv_sec * 1000000000LL + now.tv_nsec);
        bson_t *options = doc("{'projection': {'text': 1, 'token': {'$literal': '%s'}}}", token);
        bson_t *found = find_one(c, doc("{'_id': %d}", i), options);
        holds(found != NULL, "document %d is missing", i);
        same(number(found, "_id"), i, "id");
        same_text(text(found, "text"), due, "text");
        same_text(text(found, "token"), token, "token");
    }
    mongoc_collection_destroy(c);
}

void check_concurrency(void) {
    /* Every reply carries the token of its request: one that went to the wrong thread shows. */
    mongoc_collection_t *c = collection("concurrency");
    numbered(c, 50, "'text': 'document %d'");
    at_once(50, ask, NULL);
    mongoc_collection_destroy(c);
}

void check_monitoring_quiet(void) { verify_calm(view); }

void check_view(void) { verify_view(); }
