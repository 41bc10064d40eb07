/* What the checks of the scenario for libmongoc share. */

#ifndef SCENARIO_H
#define SCENARIO_H

#include <mongoc/mongoc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct view;

extern const char *wanted;     /* the view that is due */
extern const char *compressor; /* or null */
extern struct view *view;      /* what `client`, and all others of the pool, tell about themselves */
extern mongoc_client_pool_t *pool;
extern mongoc_client_t *client;
extern char database[64];

/* The error of the last operation of this thread. */
extern _Thread_local bson_error_t error;

/* --- Right and wrong: each of these ends the check, or the worker that `at_once` has started ---------------------- */

_Noreturn void wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Driver or server have no such thing. */
_Noreturn void lacking(const char *why);
void holds(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));
void same(int64_t found, int64_t due, const char *what);
void same_text(const char *found, const char *due, const char *what);
/* An operation that sets `error` must have succeeded, or failed with this code of the server. */
void must(bool good, const char *what);
void fails(uint32_t code, bool good);

/* --- Documents. They live until the check ends. ------------------------------------------------------------------- */

/* From JSON with ' instead of ". */
bson_t *doc(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* To be filled by an operation. */
bson_t *empty(void);
bson_t *copy(const bson_t *document);
/* The options, with the session. */
bson_t *with(mongoc_client_session_t *session, bson_t *options);
/* Fields by their path, as in "cursor.id". */
bool has(const bson_t *document, const char *path);
int64_t number(const bson_t *document, const char *path);
const char *text(const bson_t *document, const char *path);
void *random_bytes(size_t size);

/* --- Operations, which must succeed ------------------------------------------------------------------------------- */

/* Gives back the reply. */
bson_t *run(const char *db, bson_t *command);
mongoc_database_t *open_database(void);
mongoc_collection_t *open_collection(mongoc_client_t *of, const char *name);
/* An empty one that exists. */
mongoc_collection_t *collection(const char *name);
/* Inserts documents whose _id counts from 0; their other fields may use it up to twice. */
void numbered(mongoc_collection_t *c, int count, const char *fields);
void insert(mongoc_collection_t *c, int id, mongoc_client_session_t *session);
int64_t count(mongoc_collection_t *c, bson_t *filter, bson_t *options);
bson_t *find_one(mongoc_collection_t *c, bson_t *filter, bson_t *options);
mongoc_cursor_t *find(mongoc_collection_t *c, bson_t *filter, bson_t *options);
mongoc_cursor_t *aggregate_all(mongoc_collection_t *c, bson_t *pipeline, bson_t *options);
/* The next document, which must be there. */
const bson_t *next(mongoc_cursor_t *cursor);
/* The cursor must end now; destroys it. */
void ends(mongoc_cursor_t *cursor);
/* The rest of it must have these _ids in this order; destroys it. */
void has_ids(mongoc_cursor_t *cursor, int from, int to, const char *what);
/* The code of what the cursor ends with, 0 of a good end; destroys it. */
uint32_t cursor_code(mongoc_cursor_t *cursor);
mongoc_client_session_t *session_of(mongoc_client_t *of, const mongoc_session_opt_t *options);
/* The cursor must no longer exist on the server; one that does would answer 50738 to this session. */
void gone(mongoc_collection_t *c, int64_t cursor);
/* What the server says about a cursor that waits for its getMore. */
bson_t *idle_cursor(int64_t cursor);

/* Runs the work in as many threads, each with a client and a number of its own. */
void at_once(int threads, void (*work)(mongoc_client_t *mine, int i, void *context), void *context);
/* A pool of its own for a check, which selects a server within `patience` ms. */
mongoc_client_pool_t *another_pool(int patience, struct view *watched, mongoc_server_api_t *api);

/* --- What the driver tells about itself --------------------------------------------------------------------------- */

struct view *new_view(void);
void watch(mongoc_client_pool_t *of, struct view *watched);
/* How many commands of this name were sent until now. */
int sent(const char *command);
/* Waits until more than `before` commands of this name were sent. */
void await_sent(const char *command, int before);
int64_t last_cursor(void);
void record(void);
/* How many commands of this name were sent, and how many of all failed, since `record`. */
int recorded(const char *command);
int recorded_failures(void);
const bson_t *recorded_command(const char *command, int i);
void verify_calm(struct view *watched);
/* What holds of a closed pool, too; its last heartbeat was interrupted by the driver itself. */
void verify_kept(struct view *watched);
void verify_view(void);

/* Under the same names in every language. */
#define CHECKS(CHECK)                                                                                                  \
    CHECK(connect) CHECK(compression) CHECK(crud) CHECK(catalog) CHECK(bulk_write) CHECK(bulk_write_client)            \
    CHECK(batches) CHECK(cursor) CHECK(cursor_close) CHECK(cursor_timeout_free) CHECK(aggregate) CHECK(aggregate_out)  \
    CHECK(collation) CHECK(explain) CHECK(let_and_comment) CHECK(hint) CHECK(list_cursors) CHECK(kill_cursors)         \
    CHECK(tailable) CHECK(read_options) CHECK(read_preferences) CHECK(causal_reads) CHECK(sessions)                    \
    CHECK(snapshot_reads) CHECK(transaction_commit) CHECK(transaction_abort) CHECK(transaction_conflict)               \
    CHECK(transaction_cursor) CHECK(transaction_errors) CHECK(change_stream) CHECK(change_stream_resume)               \
    CHECK(change_stream_many) CHECK(large_document) CHECK(large_bulk) CHECK(gridfs) CHECK(unacknowledged_write)        \
    CHECK(stable_api) CHECK(max_time) CHECK(write_concern) CHECK(retryable_reads) CHECK(retryable_writes)              \
    CHECK(error_codes) CHECK(commands) CHECK(concurrency) CHECK(monitoring_quiet) CHECK(view) CHECK(close)

#define DECLARE(name) void check_##name(void);
CHECKS(DECLARE)
#undef DECLARE

/* --- Instead of the checks ---------------------------------------------------------------------------------------- */

int visit(void);

#endif
