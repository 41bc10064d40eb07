/* Documents: writing, finding, aggregating, and what the options of a command ask for. */

#include "scenario.h"

static bool lists_collection(const char *name) {
    mongoc_database_t *db = open_database();
    char **names = mongoc_database_get_collection_names_with_opts(db, NULL, &error);
    must(names != NULL, "list the collections");
    bool found = false;
    for (int i = 0; names[i]; i++) found |= strcmp(names[i], name) == 0;
    bson_strfreev(names);
    mongoc_database_destroy(db);
    return found;
}

static int indexes(mongoc_collection_t *c) {
    mongoc_cursor_t *cursor = mongoc_collection_find_indexes_with_opts(c, NULL);
    const bson_t *index;
    int found = 0;
    while (mongoc_cursor_next(cursor, &index)) found++;
    must(!mongoc_cursor_error(cursor, &error), "list the indexes");
    mongoc_cursor_destroy(cursor);
    return found;
}

static void create_index(mongoc_collection_t *c, const char *key, const char *more) {
    bson_t *command = doc("{'createIndexes': '%s', 'indexes': [{'key': {'%s': 1}, 'name': '%s_1'%s}]}",
                          mongoc_collection_get_name(c), key, key, more);
    must(mongoc_client_write_command_with_opts(client, database, command, NULL, NULL, &error), "createIndexes");
}

static void drop_database(void) {
    mongoc_database_t *db = open_database();
    must(mongoc_database_drop(db, &error), "drop the database");
    mongoc_database_destroy(db);
}

void check_connect(void) {
    same(number(run("admin", doc("{'ping': 1}")), "ok"), 1, "ok");
    holds(text(run("admin", doc("{'buildInfo': 1}")), "version") != NULL, "the server has no version");
    drop_database();
}

void check_compression(void) {
    /* A later hello that does not ask repeats what the connection negotiated in its handshake. */
    bson_t *hello = run("admin", doc("{'hello': 1}"));
    if (compressor) same_text(text(hello, "compression.0"), compressor, "negotiated compression");
    holds(!has(hello, compressor ? "compression.1" : "compression"), "something else was negotiated");
}

static bson_t *find_and_modify(mongoc_collection_t *c, bson_t *query, bson_t *update, int flags) {
    mongoc_find_and_modify_opts_t *options = mongoc_find_and_modify_opts_new();
    if (update) mongoc_find_and_modify_opts_set_update(options, update);
    mongoc_find_and_modify_opts_set_flags(options, flags);
    bson_t *reply = empty();
    bool good = mongoc_collection_find_and_modify_with_opts(c, query, options, reply, &error);
    mongoc_find_and_modify_opts_destroy(options);
    must(good, "findAndModify");
    return reply;
}

void check_crud(void) {
    mongoc_collection_t *c = collection("crud");
    bson_t *reply = empty();
    for (int i = 1; i <= 10; i++) {
        bson_t *document = doc("{'_id': %d, 'n': %d, 'tag': '%s'}", i, i, i == 1 || i % 2 == 0 ? "a" : "b");
        bson_reinit(reply);
        must(mongoc_collection_insert_one(c, document, NULL, reply, &error), "insert_one");
        same(number(reply, "insertedCount"), 1, "inserted");
    }
    same(number(find_one(c, doc("{'_id': 7}"), NULL), "n"), 7, "n");
    has_ids(find(c, doc("{'n': {'$gte': 8}}"), doc("{'sort': {'_id': 1}}")), 8, 11, "found");
    bson_t *one = doc("{'_id': 1}");
    must(mongoc_collection_update_one(c, one, doc("{'$inc': {'n': 10}}"), NULL, reply = empty(), &error), "update_one");
    same(number(reply, "modifiedCount"), 1, "updated one");
    bson_t *seen = doc("{'$set': {'seen': true}}");
    must(mongoc_collection_update_many(c, doc("{'tag': 'b'}"), seen, NULL, reply = empty(), &error), "update_many");
    same(number(reply, "modifiedCount"), 4, "updated many");
    bson_t *eleven = doc("{'$set': {'n': 11}}"), *upsert = doc("{'upsert': true}");
    must(mongoc_collection_update_one(c, doc("{'_id': 11}"), eleven, upsert, reply = empty(), &error), "upsert");
    same(number(reply, "upsertedId"), 11, "upserted id");
    bson_t *replacement = doc("{'replaced': true}");
    must(mongoc_collection_replace_one(c, doc("{'_id': 2}"), replacement, NULL, reply = empty(), &error), "replace_one");
    same(number(reply, "modifiedCount"), 1, "replaced");
    holds(bson_equal(find_one(c, doc("{'_id': 2}"), NULL), doc("{'_id': 2, 'replaced': true}")), "wrongly replaced");
    must(mongoc_collection_delete_one(c, doc("{'_id': 3}"), NULL, reply = empty(), &error), "delete_one");
    same(number(reply, "deletedCount"), 1, "deleted one");
    bson_t *several = doc("{'_id': {'$in': [4, 5]}}");
    must(mongoc_collection_delete_many(c, several, NULL, reply = empty(), &error), "delete_many");
    same(number(reply, "deletedCount"), 2, "deleted many");

    reply = find_and_modify(c, one, doc("{'$inc': {'n': 1}}"), MONGOC_FIND_AND_MODIFY_RETURN_NEW);
    same(number(reply, "value.n"), 12, "found and updated");
    reply = find_and_modify(c, doc("{'_id': 6}"), doc("{'r': 1}"), MONGOC_FIND_AND_MODIFY_RETURN_NEW);
    same(number(reply, "value.r"), 1, "found and replaced");
    reply = find_and_modify(c, doc("{'_id': 6}"), NULL, MONGOC_FIND_AND_MODIFY_REMOVE);
    same(number(reply, "value.r"), 1, "found and deleted");
    holds(!find_one(c, doc("{'_id': 6}"), NULL), "the deleted document was found");
    same(count(c, doc("{}"), NULL), 7, "count");
    same(mongoc_collection_estimated_document_count(c, NULL, NULL, NULL, &error), 7, "estimated count");
    reply = run(database, doc("{'distinct': 'crud', 'key': 'tag'}"));
    same_text(text(reply, "values.0"), "a", "distinct");
    same_text(text(reply, "values.1"), "b", "distinct");
    holds(!has(reply, "values.2"), "a third distinct value");
    mongoc_collection_destroy(c);
}

void check_catalog(void) {
    mongoc_collection_t *c = collection("catalog");
    numbered(c, 5, "'k': %d");
    create_index(c, "k", ", 'unique': true");
    same(indexes(c), 2, "indexes");
    holds(lists_collection("catalog"), "the collection is not listed");
    char **names = mongoc_client_get_database_names_with_opts(client, NULL, &error);
    must(names != NULL, "list the databases");
    bool found = false;
    for (int i = 0; names[i]; i++) found |= strcmp(names[i], database) == 0;
    bson_strfreev(names);
    holds(found, "the database is not listed");
    must(mongoc_collection_drop_index(c, "k_1", &error), "drop the index");
    same(indexes(c), 1, "indexes after the drop");
    must(mongoc_collection_rename(c, database, "renamed", true, &error), "rename");
    same_text(mongoc_collection_get_name(c), "renamed", "name");
    same(count(c, doc("{}"), NULL), 5, "count after rename");
    must(mongoc_collection_drop(c, &error), "drop");
    holds(!lists_collection("renamed"), "the dropped collection is listed");
    mongoc_collection_destroy(c);
}

void check_bulk_write(void) {
    mongoc_collection_t *c = collection("bulk");
    mongoc_bulk_operation_t *bulk = mongoc_collection_create_bulk_operation_with_opts(c, NULL);
    for (int i = 0; i < 1000; i++) mongoc_bulk_operation_insert(bulk, doc("{'_id': %d, 'n': 0}", i));
    bson_t *upsert = doc("{'upsert': true}");
    bool taken =
        mongoc_bulk_operation_update_one_with_opts(bulk, doc("{'_id': 0}"), doc("{'$set': {'n': 5}}"), NULL, &error) &&
        mongoc_bulk_operation_update_many_with_opts(bulk, doc("{}"), doc("{'$inc': {'n': 1}}"), NULL, &error) &&
        mongoc_bulk_operation_replace_one_with_opts(bulk, doc("{'_id': 1}"), doc("{'n': 7}"), NULL, &error) &&
        mongoc_bulk_operation_remove_one_with_opts(bulk, doc("{'_id': 2}"), NULL, &error) &&
        mongoc_bulk_operation_update_one_with_opts(bulk, doc("{'_id': -1}"), doc("{'$set': {'n': 1}}"), upsert, &error);
    must(taken, "fill the bulk operation");
    bson_t *reply = empty();
    must(mongoc_bulk_operation_execute(bulk, reply, &error), "bulk operation");
    mongoc_bulk_operation_destroy(bulk);
    same(number(reply, "nInserted"), 1000, "inserted");
    same(number(reply, "nModified"), 1002, "modified");
    same(number(reply, "nRemoved"), 1, "deleted");
    same(number(reply, "nUpserted"), 1, "upserted");
    same(number(find_one(c, doc("{'_id': 0}"), NULL), "n"), 6, "n of the first");
    same(number(find_one(c, doc("{'_id': 1}"), NULL), "n"), 7, "n of the second");
    same(number(find_one(c, doc("{'_id': 3}"), NULL), "n"), 1, "n of the fourth");

    /* In any order: each of the two that fail is named, all others are done. */
    bulk = mongoc_collection_create_bulk_operation_with_opts(c, doc("{'ordered': false}"));
    static const int ids[] = {5000, 10, 5001, 11, 5002};
    for (int i = 0; i < 5; i++) mongoc_bulk_operation_insert(bulk, doc("{'_id': %d}", ids[i]));
    fails(11000, mongoc_bulk_operation_execute(bulk, reply = empty(), &error));
    mongoc_bulk_operation_destroy(bulk);
    same(number(reply, "writeErrors.0.index"), 1, "index of the first error");
    same(number(reply, "writeErrors.1.index"), 3, "index of the second error");
    holds(!has(reply, "writeErrors.2"), "a third error");
    same(count(c, doc("{'_id': {'$gte': 5000}}"), NULL), 3, "count of those that did not fail");
    mongoc_collection_destroy(c);
}

void check_bulk_write_client(void) { lacking("libmongoc has it from version 1.28 on, the server from 8.0 on"); }

void check_aggregate(void) {
    mongoc_collection_t *c = collection("aggregate");
    const bson_t **documents = calloc(300, sizeof *documents);
    for (int i = 0; i < 300; i++) documents[i] = doc("{'_id': %d, 'group': %d, 'n': %d}", i, i % 3, i);
    bool inserted = mongoc_collection_insert_many(c, documents, 300, NULL, NULL, &error);
    free(documents);
    must(inserted, "insert_many");
    bson_t *groups = doc("{'pipeline': [{'$group': {'_id': '$group', 'sum': {'$sum': '$n'}}}, {'$sort': {'_id': 1}}]}");
    mongoc_cursor_t *cursor = aggregate_all(c, groups, NULL);
    for (int group = 0; group < 3; group++) {
        const bson_t *found = next(cursor);
        same(number(found, "_id"), group, "group");
        same(number(found, "sum"), 14850 + 100 * group, "sum");
    }
    ends(cursor);
    int before = sent("getMore");
    bson_t *sorted = doc("{'pipeline': [{'$sort': {'_id': 1}}]}");
    has_ids(aggregate_all(c, sorted, doc("{'batchSize': 25, 'allowDiskUse': true}")), 0, 300, "ids");
    holds(sent("getMore") - before >= 11, "the result came in too few batches");
    mongoc_collection_destroy(c);
}

void check_aggregate_out(void) {
    mongoc_collection_t *c = collection("aggregate_source"), *target = open_collection(client, "aggregate_out");
    numbered(c, 30, "'k': %d");
    ends(aggregate_all(c, doc("{'pipeline': [{'$match': {'k': {'$lt': 10}}}, {'$out': 'aggregate_out'}]}"), NULL));
    same(count(target, doc("{}"), NULL), 10, "count after $out");
    const char *merge = "{'$merge': {'into': 'aggregate_out', 'whenMatched': 'fail', 'whenNotMatched': 'insert'}}";
    ends(aggregate_all(c, doc("{'pipeline': [{'$match': {'k': {'$gte': 10}}}, %s]}", merge), NULL));
    same(count(target, doc("{}"), NULL), 30, "count after $merge");
    same(cursor_code(aggregate_all(c, doc("{'pipeline': [%s]}", merge), NULL)), 11000, "code of a $merge that fails");
    mongoc_collection_destroy(target);
    mongoc_collection_destroy(c);
}

void check_collation(void) {
    mongoc_collection_t *c = collection("collation");
    static const char *const words[] = {"b", "A", "a", "B", "c10", "c9"};
    for (int i = 0; i < 6; i++) {
        bson_t *document = doc("{'_id': %d, 'w': '%s'}", i, words[i]);
        must(mongoc_collection_insert_one(c, document, NULL, NULL, &error), "insert_one");
    }
    bson_t *a = doc("{'w': 'a'}");
    const char *blind = "'collation': {'locale': 'en', 'strength': 2}";
    has_ids(find(c, a, doc("{%s, 'sort': {'_id': 1}}", blind)), 1, 3, "found");
    bson_t *numeric = doc("{'collation': {'locale': 'en', 'numericOrdering': true}, 'sort': {'w': 1}}");
    mongoc_cursor_t *cursor = find(c, doc("{'w': {'$gte': 'c'}}"), numeric);
    same(number(next(cursor), "_id"), 5, "first in numeric order");
    same(number(next(cursor), "_id"), 4, "second in numeric order");
    ends(cursor);
    same(count(c, a, doc("{%s}", blind)), 2, "count");
    bson_t *reply = run(database, doc("{'distinct': 'collation', 'key': 'w', %s}", blind));
    holds(has(reply, "values.3") && !has(reply, "values.4"), "there are not four distinct words");
    bson_t *set = doc("{'$set': {'seen': true}}");
    must(mongoc_collection_update_many(c, a, set, doc("{%s}", blind), reply = empty(), &error), "update_many");
    same(number(reply, "modifiedCount"), 2, "updated");
    must(mongoc_collection_delete_many(c, a, NULL, reply = empty(), &error), "delete_many");
    same(number(reply, "deletedCount"), 1, "deleted without a collation");
    mongoc_collection_destroy(c);
}

void check_explain(void) {
    mongoc_collection_t *c = collection("explain");
    numbered(c, 20, "'k': %d");
    bson_t *reply = run(database, doc("{'explain': {'find': 'explain', 'filter': {'k': {'$lt': 5}}}}"));
    same(number(reply, "executionStats.nReturned"), 5, "nReturned");
    reply = run(database, doc("{'explain': {'delete': 'explain', 'deletes': [{'q': {}, 'limit': 0}]}}"));
    holds(has(reply, "queryPlanner"), "delete has no queryPlanner");
    run(database, doc("{'explain': {'aggregate': 'explain', 'pipeline': [{'$match': {'k': 3}}], 'cursor': {}}}"));
    run(database, doc("{'explain': {'count': 'explain', 'query': {'k': 3}}}"));
    same(count(c, doc("{}"), NULL), 20, "count after an explained delete");
    mongoc_collection_destroy(c);
}

void check_let_and_comment(void) {
    mongoc_collection_t *c = collection("let");
    numbered(c, 50, "'n': %d");
    bson_t *at_least = doc("{'$expr': {'$gte': ['$n', '$$least']}}");
    const char *let = "'let': {'least': 20}";
    bson_t *options = doc("{%s, 'comment': 'tale of the find', 'batchSize': 5, 'sort': {'_id': 1}}", let);
    mongoc_cursor_t *cursor = find(c, at_least, options);
    same(number(next(cursor), "_id"), 20, "first id");
    bson_t *idle = idle_cursor(mongoc_cursor_get_id(cursor));
    same_text(text(idle, "cursor.originatingCommand.comment"), "tale of the find", "comment that the server keeps");
    has_ids(cursor, 21, 50, "other ids");
    bson_t *pipeline =
        doc("{'pipeline': [{'$match': {'$expr': {'$gte': ['$n', '$$least']}}}, {'$sort': {'_id': 1}}]}");
    options = doc("{'let': {'least': 45}, 'comment': 'another'}");
    has_ids(aggregate_all(c, pipeline, options), 45, 50, "aggregated ids");
    /* A pipeline as update is an array. */
    bson_t *reply = empty(), *array = doc("{'0': {'$set': {'least': '$$least'}}}");
    options = doc("{%s, 'comment': 'of an update'}", let);
    must(mongoc_collection_update_many(c, at_least, array, options, reply, &error), "update_many");
    same(number(reply, "modifiedCount"), 30, "updated");
    same(count(c, doc("{'least': 20}"), NULL), 30, "count of what was set");
    must(mongoc_collection_delete_many(c, at_least, doc("{%s}", let), reply = empty(), &error), "delete_many");
    same(number(reply, "deletedCount"), 30, "deleted");
    mongoc_collection_destroy(c);
}

void check_hint(void) {
    mongoc_collection_t *c = collection("hint");
    numbered(c, 20, "'k': %d, 'l': -%d");
    create_index(c, "k", "");
    create_index(c, "l", "");
    bson_t *filter = doc("{'k': {'$gte': 10}}"), *by_l = doc("{'hint': 'l_1'}"), *by_none = doc("{'hint': 'none_1'}");
    /* What no sort asks to be in order comes in the order of the index. */
    same(number(find_one(c, filter, by_l), "_id"), 19, "first in the order of the index");
    has_ids(find(c, filter, doc("{'hint': {'k': 1}}")), 10, 20, "ids");
    mongoc_cursor_t *cursor = aggregate_all(c, doc("{'pipeline': [{'$match': {'k': {'$gte': 10}}}]}"), by_l);
    for (int i = 19; i >= 10; i--) same(number(next(cursor), "_id"), i, "aggregated ids");
    ends(cursor);
    same(cursor_code(find(c, filter, by_none)), 2, "code of a hint that is none");
    bson_t *set = doc("{'$set': {'seen': true}}"), *reply = empty();
    fails(2, mongoc_collection_update_one(c, filter, set, by_none, NULL, &error));
    must(mongoc_collection_update_one(c, filter, set, by_l, reply, &error), "update_one");
    same(number(reply, "modifiedCount"), 1, "updated");
    fails(2, mongoc_collection_delete_one(c, filter, by_none, NULL, &error));
    must(mongoc_collection_delete_one(c, filter, by_l, reply = empty(), &error), "delete_one");
    same(number(reply, "deletedCount"), 1, "deleted");
    same(count(c, doc("{'_id': 19}"), NULL), 0, "count of the last");
    mongoc_collection_destroy(c);
}

void check_error_codes(void) {
    mongoc_collection_t *c = collection("error_codes");
    insert(c, 1, NULL);
    fails(11000, mongoc_collection_insert_one(c, doc("{'_id': 1}"), NULL, NULL, &error));
    bson_t *reply = run(database, doc("{'insert': 'error_codes', 'documents': [{'_id': 1}]}"));
    same(number(reply, "writeErrors.0.keyValue._id"), 1, "keyValue");
    const bson_t *three[] = {doc("{'_id': 2}"), doc("{'_id': 1}"), doc("{'_id': 3}")};
    fails(11000, mongoc_collection_insert_many(c, three, 3, doc("{'ordered': false}"), reply = empty(), &error));
    same(number(reply, "writeErrors.0.index"), 1, "index of the write that failed");
    same(number(reply, "insertedCount"), 2, "inserted");
    fails(59, mongoc_client_command_simple(client, database, doc("{'noSuchCommand': 1}"), NULL, NULL, &error));
    same(cursor_code(find(c, doc("{'$noSuchOperator': 1}"), NULL)), 2, "code of an unknown operator");
    holds(strstr(error.message, "$noSuchOperator") != NULL, "the text of the error is lost: %s", error.message);
    bson_t *missing = doc("{'listIndexes': 'no_such_collection'}");
    fails(26, mongoc_client_command_simple(client, database, missing, NULL, NULL, &error));
    fails(73, mongoc_client_command_simple(client, database, doc("{'create': ''}"), NULL, NULL, &error));
    same(count(c, doc("{}"), NULL), 3, "count");
    mongoc_collection_destroy(c);
}

void check_close(void) {
    drop_database();
    mongoc_client_pool_push(pool, client);
    verify_calm(view);
    mongoc_client_pool_destroy(pool);
    verify_kept(view);
}
