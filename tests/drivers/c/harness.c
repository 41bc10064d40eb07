/* Runs the checks, and what they share. */

#define _GNU_SOURCE /* vasprintf */

#include "scenario.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

/* Of one check, seconds. `with_transaction` alone may start over for 120 s. */
enum { LONGEST = 30 };

const char *wanted = "sharded";
const char *compressor;
struct view *view;
mongoc_client_pool_t *pool;
mongoc_client_t *client;
char database[64];
_Thread_local bson_error_t error;

static const char *address;
static const char *running;

/* Where a thread goes on when something is wrong, and what that was. */
static _Thread_local jmp_buf *way_out;
static _Thread_local char reason[512];
static _Thread_local bool is_lacking;

static pthread_mutex_t shelf_lock = PTHREAD_MUTEX_INITIALIZER;
static struct kept {
    struct kept *next;
    bson_t *document;
    void *bytes;
} *shelf;

static void keep(bson_t *document, void *bytes) {
    struct kept *one = malloc(sizeof *one);
    pthread_mutex_lock(&shelf_lock);
    *one = (struct kept){shelf, document, bytes};
    shelf = one;
    pthread_mutex_unlock(&shelf_lock);
}

static void clear_shelf(void) {
    while (shelf) {
        struct kept *one = shelf;
        shelf = one->next;
        if (one->document) bson_destroy(one->document);
        free(one->bytes);
        free(one);
    }
}

void wrong(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    is_lacking = false;
    longjmp(*way_out, 1);
}

void lacking(const char *why) {
    snprintf(reason, sizeof reason, "%s", why);
    is_lacking = true;
    longjmp(*way_out, 1);
}

void holds(bool good, const char *format, ...) {
    if (good) return;
    char what[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    wrong("%s", what);
}

void same(int64_t found, int64_t due, const char *what) {
    if (found != due) wrong("%s is %lld, not %lld", what, (long long)found, (long long)due);
}

void same_text(const char *found, const char *due, const char *what) {
    if (!found || strcmp(found, due) != 0) wrong("%s is %s, not %s", what, found ? found : "missing", due);
}

void must(bool good, const char *what) {
    if (!good) wrong("%s: code %u, %s", what, error.code, error.message);
}

void fails(uint32_t code, bool good) {
    if (good) wrong("no error, code %u was due", code);
    if (error.code != code) wrong("the code is %u, not %u: %s", error.code, code, error.message);
}

bson_t *doc(const char *format, ...) {
    char *json = NULL;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&json, format, arguments);
    va_end(arguments);
    if (length < 0) wrong("out of memory");
    for (char *at = json; *at; at++) {
        if (*at == '\'') *at = '"';
    }
    bson_t *document = bson_new_from_json((const uint8_t *)json, length, &error);
    keep(document, json);
    must(document != NULL, json);
    return document;
}

bson_t *empty(void) {
    bson_t *document = bson_new();
    keep(document, NULL);
    return document;
}

bson_t *copy(const bson_t *document) {
    bson_t *mine = bson_copy(document);
    keep(mine, NULL);
    return mine;
}

bson_t *with(mongoc_client_session_t *session, bson_t *options) {
    if (session) must(mongoc_client_session_append(session, options, &error), "append the session");
    return options;
}

static bool reach(const bson_t *document, const char *path, bson_iter_t *found) {
    bson_iter_t top;
    return bson_iter_init(&top, document) && bson_iter_find_descendant(&top, path, found);
}

bool has(const bson_t *document, const char *path) {
    bson_iter_t found;
    return reach(document, path, &found);
}

int64_t number(const bson_t *document, const char *path) {
    bson_iter_t found;
    if (!reach(document, path, &found)) wrong("there is no %s in %.200s", path, bson_as_json(document, NULL));
    return bson_iter_as_int64(&found);
}

const char *text(const bson_t *document, const char *path) {
    bson_iter_t found;
    return reach(document, path, &found) ? bson_iter_utf8(&found, NULL) : NULL;
}

void *random_bytes(size_t size) {
    uint8_t *bytes = malloc(size);
    keep(NULL, bytes);
    FILE *source = fopen("/dev/urandom", "rb");
    holds(source && fread(bytes, 1, size, source) == size, "no random bytes");
    fclose(source);
    return bytes;
}

bson_t *run(const char *db, bson_t *command) {
    bson_t *reply = empty();
    must(mongoc_client_command_simple(client, db, command, NULL, reply, &error), "command");
    return reply;
}

mongoc_database_t *open_database(void) { return mongoc_client_get_database(client, database); }

mongoc_collection_t *open_collection(mongoc_client_t *of, const char *name) {
    return mongoc_client_get_collection(of, database, name);
}

mongoc_collection_t *collection(const char *name) {
    mongoc_collection_t *c = open_collection(client, name);
    /* 26: there was none. */
    if (!mongoc_collection_drop(c, &error) && error.code != 26) must(false, "drop");
    run(database, doc("{'create': '%s'}", name));
    return c;
}

void numbered(mongoc_collection_t *c, int count, const char *fields) {
    const bson_t **documents = calloc(count, sizeof *documents);
    keep(NULL, documents);
    for (int i = 0; i < count; i++) {
        char more[256];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(more, sizeof more, fields, i, i);
#pragma GCC diagnostic pop
        documents[i] = doc("{'_id': %d%s%s}", i, *more ? ", " : "", more);
    }
    must(mongoc_collection_insert_many(c, documents, count, NULL, NULL, &error), "insert_many");
}

void insert(mongoc_collection_t *c, int id, mongoc_client_session_t *session) {
    bson_t *options = with(session, empty());
    must(mongoc_collection_insert_one(c, doc("{'_id': %d}", id), options, NULL, &error), "insert_one");
}

int64_t count(mongoc_collection_t *c, bson_t *filter, bson_t *options) {
    int64_t found = mongoc_collection_count_documents(c, filter, options, NULL, NULL, &error);
    must(found >= 0, "count_documents");
    return found;
}

mongoc_cursor_t *find(mongoc_collection_t *c, bson_t *filter, bson_t *options) {
    return mongoc_collection_find_with_opts(c, filter, options, NULL);
}

mongoc_cursor_t *aggregate_all(mongoc_collection_t *c, bson_t *pipeline, bson_t *options) {
    return mongoc_collection_aggregate(c, MONGOC_QUERY_NONE, pipeline, options, NULL);
}

bson_t *find_one(mongoc_collection_t *c, bson_t *filter, bson_t *options) {
    mongoc_cursor_t *cursor = find(c, filter, options);
    const bson_t *found;
    bson_t *mine = mongoc_cursor_next(cursor, &found) ? copy(found) : NULL;
    must(!mongoc_cursor_error(cursor, &error), "find");
    mongoc_cursor_destroy(cursor);
    return mine;
}

const bson_t *next(mongoc_cursor_t *cursor) {
    const bson_t *found;
    if (!mongoc_cursor_next(cursor, &found)) {
        must(!mongoc_cursor_error(cursor, &error), "cursor");
        wrong("the cursor has ended");
    }
    return found;
}

void ends(mongoc_cursor_t *cursor) {
    const bson_t *found;
    holds(!mongoc_cursor_next(cursor, &found), "the cursor does not end");
    must(!mongoc_cursor_error(cursor, &error), "cursor");
    mongoc_cursor_destroy(cursor);
}

void has_ids(mongoc_cursor_t *cursor, int from, int to, const char *what) {
    for (int i = from; i < to; i++) same(number(next(cursor), "_id"), i, what);
    ends(cursor);
}

uint32_t cursor_code(mongoc_cursor_t *cursor) {
    const bson_t *found;
    while (mongoc_cursor_next(cursor, &found)) {
    }
    uint32_t code = mongoc_cursor_error(cursor, &error) ? error.code : 0;
    mongoc_cursor_destroy(cursor);
    return code;
}

mongoc_client_session_t *session_of(mongoc_client_t *of, const mongoc_session_opt_t *options) {
    mongoc_client_session_t *session = mongoc_client_start_session(of, options, &error);
    must(session != NULL, "start a session");
    return session;
}

void gone(mongoc_collection_t *c, int64_t cursor) {
    const char *name = mongoc_collection_get_name(c);
    bson_t *get_more = doc("{'getMore': {'$numberLong': '%lld'}, 'collection': '%s'}", (long long)cursor, name);
    /* A getMore that was running when the cursor was killed still holds it for a moment. */
    for (int tries = 0;; tries++) {
        bool good = mongoc_client_command_simple(client, database, get_more, NULL, NULL, &error);
        if (!good && error.code == 43) return;
        holds(!good && error.code == 143 && tries < 250, "the cursor was not killed: code %u", good ? 0 : error.code);
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
    }
}

bson_t *idle_cursor(int64_t cursor) {
    mongoc_database_t *admin = mongoc_client_get_database(client, "admin");
    bson_t *pipeline = doc("{'pipeline': [{'$currentOp': {'idleCursors': true, 'allUsers': true}}, "
                           "{'$match': {'type': 'idleCursor', 'cursor.cursorId': {'$numberLong': '%lld'}}}]}",
                           (long long)cursor);
    mongoc_cursor_t *found = mongoc_database_aggregate(admin, pipeline, NULL, NULL);
    bson_t *one = copy(next(found));
    mongoc_cursor_destroy(found);
    mongoc_database_destroy(admin);
    return one;
}

struct worker {
    pthread_t thread;
    int i;
    void (*work)(mongoc_client_t *, int, void *);
    void *context;
    bool failed;
    char reason[sizeof reason];
};

static void *start_worker(void *argument) {
    struct worker *worker = argument;
    jmp_buf here;
    way_out = &here;
    mongoc_client_t *mine = mongoc_client_pool_pop(pool);
    if (setjmp(here) == 0) {
        worker->work(mine, worker->i, worker->context);
    } else {
        worker->failed = true;
        memcpy(worker->reason, reason, sizeof reason);
    }
    mongoc_client_pool_push(pool, mine);
    return NULL;
}

void at_once(int threads, void (*work)(mongoc_client_t *, int, void *), void *context) {
    struct worker *workers = calloc(threads, sizeof *workers);
    keep(NULL, workers);
    for (int i = 0; i < threads; i++) {
        workers[i] = (struct worker){.i = i, .work = work, .context = context};
        pthread_create(&workers[i].thread, NULL, start_worker, &workers[i]);
    }
    for (int i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
    for (int i = 0; i < threads; i++) {
        if (workers[i].failed) wrong("worker %d: %s", i, workers[i].reason);
    }
}

mongoc_client_pool_t *another_pool(int patience, struct view *watched, mongoc_server_api_t *api) {
    mongoc_uri_t *parsed = mongoc_uri_new_with_error(address, &error);
    must(parsed != NULL, address);
    mongoc_uri_set_option_as_int32(parsed, MONGOC_URI_SERVERSELECTIONTIMEOUTMS, patience);
    holds(!compressor || mongoc_uri_set_compressors(parsed, compressor), "no compressor %s", compressor);
    mongoc_client_pool_t *made = mongoc_client_pool_new_with_error(parsed, &error);
    must(made != NULL, "make a pool");
    mongoc_uri_destroy(parsed);
    mongoc_client_pool_set_error_api(made, MONGOC_ERROR_API_VERSION_2);
    if (api) must(mongoc_client_pool_set_server_api(made, api, &error), "set the API");
    watch(made, watched);
    return made;
}

/* What waits inside the driver cannot be left behind: this ends the process. */
static void too_late(int signal) {
    (void)signal;
    static const char before[] = "FAIL ", after[] = ": not done in time\n";
    bool written = write(STDOUT_FILENO, before, sizeof before - 1) >= 0 &&
                   write(STDOUT_FILENO, running, strlen(running)) >= 0 &&
                   write(STDOUT_FILENO, after, sizeof after - 1) >= 0;
    _exit(written ? 1 : 3);
}

static bool verdict(const char *name, void (*check)(void)) {
    jmp_buf here;
    way_out = &here;
    running = name;
    bool good = true;
    alarm(LONGEST);
    if (setjmp(here) == 0) {
        check();
        printf("ok %s\n", name);
    } else {
        for (char *at = reason; *at; at++) {
            if (*at == '\n') *at = ' ';
        }
        printf("%s %s: %.400s\n", is_lacking ? "n/a" : "FAIL", name, reason);
        good = is_lacking;
    }
    alarm(0);
    fflush(stdout);
    clear_shelf();
    return good;
}

static void set_up(void) {
    view = new_view();
    pool = another_pool(10000, view, NULL);
    client = mongoc_client_pool_pop(pool);
    snprintf(database, sizeof database, "drivers_c_%s%s", wanted, compressor ? compressor : "");
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "visit") == 0) {
        mongoc_init();
        return visit();
    }
    bool understood = argc >= 2 && argc % 2 == 0;
    for (int i = 2; understood && i < argc; i += 2) {
        if (strcmp(argv[i], "--view") == 0) {
            wanted = argv[i + 1];
        } else if (strcmp(argv[i], "--compressor") == 0) {
            compressor = argv[i + 1];
        } else {
            understood = false;
        }
    }
    if (!understood) {
        fprintf(stderr, "usage: %s URI [--view VIEW] [--compressor NAME]\n", argv[0]);
        return 2;
    }
    address = argv[1];
    signal(SIGALRM, too_late);
    mongoc_init();
    jmp_buf here;
    way_out = &here;
    if (setjmp(here) != 0) {
        fprintf(stderr, "%s\n", reason);
        return 2;
    }
    set_up();

    struct {
        const char *name;
        void (*run)(void);
    } checks[] = {
#define ENTRY(name) {#name, check_##name},
        CHECKS(ENTRY)
#undef ENTRY
    };
    int code = 0;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        if (!verdict(checks[i].name, checks[i].run)) {
            code = 1;
            if (i == 0) break;
        }
    }
    printf("finished\n");
    return code;
}
