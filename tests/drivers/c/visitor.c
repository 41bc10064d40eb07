/* The C driver as a visitor of `tests/drivers/logins`; `python/visitor.py` says what is asked and answered. */

#include "scenario.h"

enum { MOST_CLIENTS = 512 };

static struct {
    char name[32];
    mongoc_client_t *client;
} visitors[MOST_CLIENTS];

static mongoc_client_t **place_of(const char *name) {
    for (size_t i = 0; i < MOST_CLIENTS; i++) {
        if (visitors[i].client && strcmp(visitors[i].name, name) == 0) return &visitors[i].client;
    }
    return NULL;
}

/* A client of that name; false with an error. */
static bool open_visitor(const char *name, const char *uri) {
    size_t i = 0;
    while (i < MOST_CLIENTS && visitors[i].client) i++;
    mongoc_uri_t *parsed = i < MOST_CLIENTS ? mongoc_uri_new_with_error(uri, &error) : NULL;
    if (!parsed) return false;
    mongoc_client_t *made = mongoc_client_new_from_uri_with_error(parsed, &error);
    mongoc_uri_destroy(parsed);
    if (!made) return false;
    mongoc_client_set_error_api(made, MONGOC_ERROR_API_VERSION_2);
    snprintf(visitors[i].name, sizeof visitors[i].name, "%s", name);
    visitors[i].client = made;
    return true;
}

static void tell(const bson_t *answer) {
    char *json = bson_as_relaxed_extended_json(answer, NULL);
    printf("%s\n", json);
    fflush(stdout);
    bson_free(json);
}

static void obey(const bson_t *order) {
    bson_t answer = BSON_INITIALIZER, reply = BSON_INITIALIZER;
    const char *opened = text(order, "open"), *closed = text(order, "close");
    bool good = true;
    memset(&error, 0, sizeof error);
    if (opened) {
        good = open_visitor(opened, text(order, "uri"));
    } else if (closed) {
        mongoc_client_t **place = place_of(closed);
        mongoc_client_destroy(*place);
        *place = NULL;
    } else {
        bson_iter_t at;
        const uint8_t *data;
        uint32_t length;
        bson_t command;
        mongoc_client_t **place = place_of(text(order, "on"));
        good = place && bson_iter_init_find(&at, order, "run");
        if (good) {
            bson_iter_document(&at, &length, &data);
            bson_init_static(&command, data, length);
            bson_destroy(&reply);
            good = mongoc_client_command_simple(*place, text(order, "db"), &command, NULL, &reply, &error);
            if (good) BSON_APPEND_DOCUMENT(&answer, "reply", &reply);
        }
    }
    if (!good) {
        bson_t told;
        BSON_APPEND_DOCUMENT_BEGIN(&answer, "error", &told);
        BSON_APPEND_UTF8(&told, "kind", error.domain == MONGOC_ERROR_SERVER ? "server" : "client");
        if (error.domain == MONGOC_ERROR_SERVER) {
            BSON_APPEND_INT32(&told, "code", (int32_t)error.code);
        } else {
            BSON_APPEND_NULL(&told, "code");
        }
        BSON_APPEND_UTF8(&told, "message", error.message);
        bson_append_document_end(&answer, &told);
    }
    tell(&answer);
    bson_destroy(&answer);
    bson_destroy(&reply);
}

int visit(void) {
    char *line = NULL;
    size_t size = 0;
    ssize_t length;
    while ((length = getline(&line, &size, stdin)) > 0) {
        bson_t *order = bson_new_from_json((const uint8_t *)line, length, &error);
        if (!order) {
            fprintf(stderr, "%s\n", error.message);
            return 2;
        }
        obey(order);
        bson_destroy(order);
    }
    free(line);
    return 0;
}
