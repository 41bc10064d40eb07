/* Where and in which order reads and writes take place: read options, sessions, transactions. */

#include "scenario.h"

void check_read_options(void) {
    mongoc_collection_t *c = collection("read_options");
    insert(c, 1, NULL);
    static const char *const levels[] = {"local", "majority", "available", "linearizable"};
    for (int i = 0; i < 4; i++) {
        has_ids(find(c, doc("{}"), doc("{'readConcern': {'level': '%s'}}", levels[i])), 1, 2, levels[i]);
    }
    same(cursor_code(find(c, doc("{}"), doc("{'readConcern': {'level': 'none'}}"))), 9, "code of an unknown level");
    mongoc_collection_destroy(c);
}

void check_read_preferences(void) {
    mongoc_collection_t *c = collection("read_preferences");
    numbered(c, 50, "");
    static const struct {
        mongoc_read_mode_t mode;
        int64_t staleness;
        bool tags;
    } modes[] = {
        {MONGOC_READ_PRIMARY, 0, false}, {MONGOC_READ_PRIMARY_PREFERRED, 0, false},
        {MONGOC_READ_NEAREST, 0, true},  {MONGOC_READ_SECONDARY_PREFERRED, 0, false},
        {MONGOC_READ_NEAREST, 0, false}, {MONGOC_READ_SECONDARY_PREFERRED, 90, false},
    };
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        mongoc_read_prefs_t *preference = mongoc_read_prefs_new(modes[i].mode);
        if (modes[i].staleness) mongoc_read_prefs_set_max_staleness_seconds(preference, modes[i].staleness);
        if (modes[i].tags) {
            mongoc_read_prefs_add_tag(preference, doc("{'no': 'such'}"));
            mongoc_read_prefs_add_tag(preference, doc("{}"));
        }
        bson_t *options = doc("{'sort': {'_id': 1}, 'batchSize': 20}");
        has_ids(mongoc_collection_find_with_opts(c, doc("{}"), options, preference), 0, 50, "ids");
        same(mongoc_collection_count_documents(c, doc("{}"), NULL, preference, NULL, &error), 50, "count");
        mongoc_read_prefs_destroy(preference);
    }
    mongoc_collection_destroy(c);

    /* The set has no secondary: only who insists on one is refused, by whoever selects the server. */
    struct view *watched = new_view();
    mongoc_client_pool_t *own = another_pool(300, watched, NULL);
    mongoc_client_t *insisting = mongoc_client_pool_pop(own);
    mongoc_read_prefs_t *secondary = mongoc_read_prefs_new(MONGOC_READ_SECONDARY);
    bson_t *command = doc("{'find': 'read_preferences', 'maxTimeMS': 300}");
    bool good = mongoc_client_command_simple(insisting, database, command, secondary, NULL, &error);
    mongoc_read_prefs_destroy(secondary);
    mongoc_client_pool_push(own, insisting);
    mongoc_client_pool_destroy(own);
    if (strcmp(wanted, "replicaset") == 0) {
        /* This driver connects directly to a single address, and then takes what is there. */
        must(good, "find");
    } else {
        fails(50, good);
    }
}

void check_causal_reads(void) {
    mongoc_collection_t *c = collection("causal_reads");
    mongoc_read_prefs_t *nearest = mongoc_read_prefs_new(MONGOC_READ_NEAREST);
    mongoc_client_session_t *session = session_of(client, NULL), *other = session_of(client, NULL);
    record();
    for (int i = 0; i < 20; i++) {
        insert(c, i, session);
        bson_t *options = with(session, empty());
        has_ids(mongoc_collection_find_with_opts(c, doc("{'_id': %d}", i), options, nearest), i, i + 1, "own write");
    }
    same(recorded("find"), 20, "finds");
    for (int i = 0; i < 20; i++) {
        holds(has(recorded_command("find", i), "readConcern.afterClusterTime"), "a find does not wait");
    }
    uint32_t timestamp, increment;
    mongoc_client_session_get_operation_time(session, &timestamp, &increment);
    mongoc_client_session_advance_cluster_time(other, mongoc_client_session_get_cluster_time(session));
    mongoc_client_session_advance_operation_time(other, timestamp, increment);
    bson_t *options = with(other, empty());
    has_ids(mongoc_collection_find_with_opts(c, doc("{'_id': 19}"), options, nearest), 19, 20, "write of another one");
    mongoc_client_session_destroy(session);
    mongoc_client_session_destroy(other);
    mongoc_read_prefs_destroy(nearest);
    mongoc_collection_destroy(c);
}

void check_sessions(void) {
    mongoc_collection_t *c = collection("sessions");
    numbered(c, 50, "");
    mongoc_client_session_t *session = session_of(client, NULL);
    bson_t *lsid = copy(mongoc_client_session_get_lsid(session));
    record();
    insert(c, 50, session);
    has_ids(find(c, doc("{}"), with(session, doc("{'sort': {'_id': 1}, 'batchSize': 20}"))), 0, 51, "ids");
    mongoc_client_session_destroy(session);
    same(count(c, doc("{}"), NULL), 51, "count");
    same(recorded("insert"), 1, "inserts");
    same(recorded("find"), 1, "finds");
    same(recorded("getMore"), 2, "getMores");
    /* The last one is given the session again. */
    const bson_t *all[] = {recorded_command("insert", 0), recorded_command("find", 0), recorded_command("getMore", 0),
                           recorded_command("getMore", 1), recorded_command("aggregate", 0)};
    for (int i = 0; i < 5; i++) {
        bson_iter_t top;
        uint32_t length;
        const uint8_t *bytes;
        holds(bson_iter_init_find(&top, all[i], "lsid"), "a command without a session");
        bson_iter_document(&top, &length, &bytes);
        holds(length == lsid->len && memcmp(bytes, bson_get_data(lsid), length) == 0, "command %d: another lsid", i);
    }

    /* Twenty at once, each its own; ended by name in the end. */
    mongoc_client_session_t *open[20];
    bson_t *refresh = empty(), *end = empty(), list;
    BSON_APPEND_ARRAY_BEGIN(refresh, "refreshSessions", &list);
    for (int i = 0; i < 20; i++) {
        char key[8];
        snprintf(key, sizeof key, "%d", i);
        open[i] = session_of(client, NULL);
        BSON_APPEND_DOCUMENT(&list, key, mongoc_client_session_get_lsid(open[i]));
    }
    bson_append_array_end(refresh, &list);
    bson_iter_t names;
    bson_iter_init_find(&names, refresh, "refreshSessions");
    bson_append_iter(end, "endSessions", -1, &names);
    for (int i = 0; i < 20; i++) same(count(c, doc("{}"), with(open[i], empty())), 51, "count");
    same(number(run("admin", refresh), "ok"), 1, "ok of refreshSessions");
    same(number(run("admin", end), "ok"), 1, "ok of endSessions");
    for (int i = 0; i < 20; i++) mongoc_client_session_destroy(open[i]);
    mongoc_collection_destroy(c);
}

void check_snapshot_reads(void) {
    mongoc_collection_t *c = collection("snapshot_reads");
    numbered(c, 50, "");
    mongoc_session_opt_t *snapshot = mongoc_session_opts_new();
    mongoc_session_opts_set_snapshot(snapshot, true);
    mongoc_client_session_t *session = session_of(client, snapshot);
    mongoc_session_opts_destroy(snapshot);
    same(count(c, doc("{}"), with(session, empty())), 50, "count");
    must(mongoc_collection_delete_many(c, doc("{'_id': {'$lt': 25}}"), NULL, NULL, &error), "delete_many");
    bson_t *options = with(session, doc("{'sort': {'_id': 1}, 'batchSize': 20}"));
    has_ids(find(c, doc("{}"), options), 0, 50, "ids of before the deletion");
    bson_t *distinct = doc("{'distinct': 'snapshot_reads', 'key': '_id'}"), *reply = empty();
    options = with(session, empty());
    must(mongoc_client_read_command_with_opts(client, database, distinct, NULL, options, reply, &error), "distinct");
    holds(has(reply, "values.49"), "distinct does not see what was before the deletion");
    mongoc_client_session_destroy(session);
    same(count(c, doc("{}"), NULL), 25, "count outside");
    mongoc_collection_destroy(c);
}

/* Within a transaction the driver must see what fails, with its labels: nothing here may leave the callback. */
struct in_transaction {
    mongoc_collection_t *first, *second;
    int64_t inside, outside;
    int runs;
};

static bool add(mongoc_client_session_t *session, mongoc_collection_t *c, int id, bson_t **reply, bson_error_t *why) {
    bson_t *options = bson_new(), answer = BSON_INITIALIZER;
    bool good = mongoc_client_session_append(session, options, why) &&
                mongoc_collection_insert_one(c, doc("{'_id': %d}", id), options, &answer, why);
    bson_destroy(options);
    *reply = bson_copy(&answer);
    bson_destroy(&answer);
    return good;
}

static int64_t quiet_count(mongoc_collection_t *c, mongoc_client_session_t *session) {
    bson_t *options = bson_new();
    if (session && !mongoc_client_session_append(session, options, NULL)) return -1;
    bson_error_t why;
    int64_t found = mongoc_collection_count_documents(c, doc("{}"), options, NULL, NULL, &why);
    bson_destroy(options);
    return found;
}

static bool add_two(mongoc_client_session_t *session, void *context, bson_t **reply, bson_error_t *why) {
    struct in_transaction *mine = context;
    mine->runs++;
    if (!add(session, mine->first, 1, reply, why)) return false;
    bson_destroy(*reply);
    if (!add(session, mine->second, 2, reply, why)) return false;
    mine->inside = quiet_count(mine->first, session);
    mine->outside = quiet_count(mine->first, NULL);
    return true;
}

void check_transaction_commit(void) {
    struct in_transaction mine = {.first = collection("commit_a"), .second = collection("commit_b")};
    mongoc_client_session_t *session = session_of(client, NULL);
    must(mongoc_client_session_with_transaction(session, add_two, NULL, &mine, NULL, &error), "with_transaction");
    same(mine.inside, 1, "count inside");
    same(mine.outside, 0, "count outside before the commit");
    same(mine.runs, 1, "runs");
    same(count(mine.first, doc("{}"), NULL), 1, "count of the first after the commit");
    same(count(mine.second, doc("{}"), NULL), 1, "count of the second after the commit");
    /* A commit that is sent again is answered again. */
    must(mongoc_client_session_start_transaction(session, NULL, &error), "start");
    insert(mine.first, 4, session);
    must(mongoc_client_session_commit_transaction(session, NULL, &error), "commit");
    must(mongoc_client_session_commit_transaction(session, NULL, &error), "commit again");
    same(count(mine.first, doc("{}"), NULL), 2, "count after two commits of one transaction");
    mongoc_client_session_destroy(session);
    mongoc_collection_destroy(mine.first);
    mongoc_collection_destroy(mine.second);
}

static bool add_and_give_up(mongoc_client_session_t *session, void *context, bson_t **reply, bson_error_t *why) {
    struct in_transaction *mine = context;
    if (!add(session, mine->first, 1, reply, why)) return false;
    mine->inside = quiet_count(mine->first, session);
    bson_set_error(why, 4711, 42, "enough");
    return false;
}

void check_transaction_abort(void) {
    struct in_transaction mine = {.first = collection("abort")};
    mongoc_client_session_t *session = session_of(client, NULL);
    fails(42, mongoc_client_session_with_transaction(session, add_and_give_up, NULL, &mine, NULL, &error));
    same(mine.inside, 1, "count inside");
    same(count(mine.first, doc("{}"), NULL), 0, "count after the abort");
    must(mongoc_client_session_start_transaction(session, NULL, &error), "start");
    insert(mine.first, 2, session);
    must(mongoc_client_session_abort_transaction(session, &error), "abort");
    same(count(mine.first, doc("{}"), NULL), 0, "count after the second abort");
    mongoc_client_session_destroy(session);
    mongoc_collection_destroy(mine.first);
}

static bool read_and_set(mongoc_client_session_t *session, void *context, bson_t **reply, bson_error_t *why) {
    mongoc_collection_t *c = context;
    bson_t *options = bson_new();
    const bson_t *found, *answer;
    bool good = mongoc_client_session_append(session, options, why);
    mongoc_cursor_t *cursor = mongoc_collection_find_with_opts(c, doc("{'_id': 1}"), options, NULL);
    good = good && mongoc_cursor_next(cursor, &found);
    if (good) {
        bson_t *set = doc("{'$set': {'n': %d}}", (int)number(found, "n") + 1);
        bson_t written;
        good = mongoc_collection_update_one(c, doc("{'_id': 1}"), set, options, &written, why);
        *reply = bson_copy(&written);
        bson_destroy(&written);
    } else if (mongoc_cursor_error_document(cursor, why, &answer)) {
        *reply = bson_copy(answer);
    }
    mongoc_cursor_destroy(cursor);
    bson_destroy(options);
    return good;
}

static void increment_thrice(mongoc_client_t *mine, int i, void *context) {
    (void)i, (void)context;
    mongoc_collection_t *c = open_collection(mine, "conflict");
    mongoc_client_session_t *session = session_of(mine, NULL);
    for (int n = 0; n < 3; n++) {
        bool good = mongoc_client_session_with_transaction(session, read_and_set, NULL, c, NULL, &error);
        must(good, "with_transaction");
    }
    mongoc_client_session_destroy(session);
    mongoc_collection_destroy(c);
}

void check_transaction_conflict(void) {
    /* Write conflicts reach the driver with their label, or with_transaction would not start over. */
    mongoc_collection_t *c = collection("conflict");
    bson_t *start = doc("{'_id': 1, 'n': 0}"), *one = doc("{'_id': 1}"), *plus = doc("{'$inc': {'n': 1}}");
    must(mongoc_collection_insert_one(c, start, NULL, NULL, &error), "insert_one");
    at_once(4, increment_thrice, NULL);
    same(number(find_one(c, one, NULL), "n"), 12, "sum of all increments");
    /* Seen without the driver's help: the second writer is told 112, and that it may start over. */
    mongoc_client_session_t *first = session_of(client, NULL), *second = session_of(client, NULL);
    must(mongoc_client_session_start_transaction(first, NULL, &error), "start");
    must(mongoc_client_session_start_transaction(second, NULL, &error), "start");
    bson_t *reply = empty();
    must(mongoc_collection_update_one(c, one, plus, with(first, empty()), NULL, &error), "update_one");
    fails(112, mongoc_collection_update_one(c, one, plus, with(second, empty()), reply, &error));
    holds(mongoc_error_has_label(reply, "TransientTransactionError"), "the label of the conflict is lost");
    must(mongoc_client_session_abort_transaction(second, &error), "abort");
    must(mongoc_client_session_commit_transaction(first, NULL, &error), "commit");
    same(number(find_one(c, one, NULL), "n"), 13, "sum");
    mongoc_client_session_destroy(first);
    mongoc_client_session_destroy(second);
    mongoc_collection_destroy(c);
}

void check_transaction_cursor(void) {
    mongoc_collection_t *c = collection("transaction_cursor");
    numbered(c, 500, "");
    mongoc_client_session_t *session = session_of(client, NULL);
    must(mongoc_client_session_start_transaction(session, NULL, &error), "start");
    bson_t *options = with(session, doc("{'sort': {'_id': 1}, 'batchSize': 50}"));
    mongoc_cursor_t *cursor = find(c, doc("{}"), options);
    same(number(next(cursor), "_id"), 0, "first id");
    /* What is written outside meanwhile is not seen. */
    must(mongoc_collection_delete_many(c, doc("{'_id': {'$gte': 250}}"), NULL, NULL, &error), "delete_many");
    has_ids(cursor, 1, 500, "ids");
    must(mongoc_client_session_commit_transaction(session, NULL, &error), "commit");
    same(count(c, doc("{}"), NULL), 250, "count afterwards");
    mongoc_client_session_destroy(session);
    mongoc_collection_destroy(c);
}

void check_transaction_errors(void) {
    mongoc_collection_t *c = collection("transaction_errors");
    insert(c, 1, NULL);
    mongoc_client_session_t *session = session_of(client, NULL);
    must(mongoc_client_session_start_transaction(session, NULL, &error), "start");
    insert(c, 2, session);
    fails(11000, mongoc_collection_insert_one(c, doc("{'_id': 1}"), with(session, empty()), NULL, &error));
    /* The error has ended it: what comes after does not run outside of a transaction. */
    bson_t *reply = empty();
    fails(251, mongoc_collection_insert_one(c, doc("{'_id': 3}"), with(session, empty()), reply, &error));
    holds(mongoc_error_has_label(reply, "TransientTransactionError"), "the label of the aborted transaction is lost");
    fails(251, mongoc_client_session_commit_transaction(session, NULL, &error));
    same(count(c, doc("{}"), NULL), 1, "count");
    must(mongoc_client_session_start_transaction(session, NULL, &error), "start");
    insert(c, 2, session);
    must(mongoc_client_session_commit_transaction(session, NULL, &error), "commit");
    same(count(c, doc("{}"), NULL), 2, "count after another transaction of the session");
    mongoc_client_session_destroy(session);
    mongoc_collection_destroy(c);
}
