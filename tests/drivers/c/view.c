/* What the driver tells about itself. It has no events of its pools, in which each client has a socket of its own. */

#include "scenario.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

enum { NAMES = 64, RECORDED = 256 };

struct view {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct {
        char name[32];
        int count;
    } sent[NAMES];
    char topology[64];
    char server[64];
    size_t servers;
    int servers_lost;
    int heartbeats_failed;
    char last_problem[256];
    int64_t last_cursor;
    bool recording;
    bson_t *commands[RECORDED];
    int recorded;
    int failures;
};

struct view *new_view(void) {
    struct view *made = calloc(1, sizeof *made);
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->changed, NULL);
    return made;
}

static int *counter(struct view *of, const char *command) {
    for (int i = 0; i < NAMES; i++) {
        if (!*of->sent[i].name) snprintf(of->sent[i].name, sizeof of->sent[i].name, "%s", command);
        if (strcmp(of->sent[i].name, command) == 0) return &of->sent[i].count;
    }
    fprintf(stderr, "more than %d names of commands\n", NAMES);
    abort();
}

static void started(const mongoc_apm_command_started_t *event) {
    struct view *mine = mongoc_apm_command_started_get_context(event);
    pthread_mutex_lock(&mine->lock);
    (*counter(mine, mongoc_apm_command_started_get_command_name(event)))++;
    if (mine->recording && mine->recorded < RECORDED) {
        mine->commands[mine->recorded++] = bson_copy(mongoc_apm_command_started_get_command(event));
    }
    pthread_cond_broadcast(&mine->changed);
    pthread_mutex_unlock(&mine->lock);
}

static void succeeded(const mongoc_apm_command_succeeded_t *event) {
    struct view *mine = mongoc_apm_command_succeeded_get_context(event);
    if (strcmp(mongoc_apm_command_succeeded_get_command_name(event), "aggregate") != 0) return;
    bson_iter_t top, id;
    if (!bson_iter_init(&top, mongoc_apm_command_succeeded_get_reply(event)) ||
        !bson_iter_find_descendant(&top, "cursor.id", &id)) {
        return;
    }
    pthread_mutex_lock(&mine->lock);
    mine->last_cursor = bson_iter_as_int64(&id);
    pthread_mutex_unlock(&mine->lock);
}

static void failed(const mongoc_apm_command_failed_t *event) {
    struct view *mine = mongoc_apm_command_failed_get_context(event);
    pthread_mutex_lock(&mine->lock);
    if (mine->recording) mine->failures++;
    pthread_mutex_unlock(&mine->lock);
}

static void server_changed(const mongoc_apm_server_changed_t *event) {
    struct view *mine = mongoc_apm_server_changed_get_context(event);
    const char *before = mongoc_server_description_type(mongoc_apm_server_changed_get_previous_description(event));
    const char *after = mongoc_server_description_type(mongoc_apm_server_changed_get_new_description(event));
    if (strcmp(before, "Unknown") == 0 || strcmp(after, "Unknown") != 0) return;
    pthread_mutex_lock(&mine->lock);
    mine->servers_lost++;
    pthread_mutex_unlock(&mine->lock);
}

static void topology_changed(const mongoc_apm_topology_changed_t *event) {
    struct view *mine = mongoc_apm_topology_changed_get_context(event);
    const mongoc_topology_description_t *now = mongoc_apm_topology_changed_get_new_description(event);
    size_t servers;
    mongoc_server_description_t **descriptions = mongoc_topology_description_get_servers(now, &servers);
    pthread_mutex_lock(&mine->lock);
    snprintf(mine->topology, sizeof mine->topology, "%s", mongoc_topology_description_type(now));
    mine->servers = servers;
    const char *type = servers ? mongoc_server_description_type(descriptions[0]) : "none";
    snprintf(mine->server, sizeof mine->server, "%s", type);
    pthread_mutex_unlock(&mine->lock);
    mongoc_server_descriptions_destroy_all(descriptions, servers);
}

static void heartbeat_failed(const mongoc_apm_server_heartbeat_failed_t *event) {
    struct view *mine = mongoc_apm_server_heartbeat_failed_get_context(event);
    bson_error_t why;
    mongoc_apm_server_heartbeat_failed_get_error(event, &why);
    pthread_mutex_lock(&mine->lock);
    mine->heartbeats_failed++;
    snprintf(mine->last_problem, sizeof mine->last_problem, "%.250s", why.message);
    pthread_mutex_unlock(&mine->lock);
}

void watch(mongoc_client_pool_t *of, struct view *watched) {
    mongoc_apm_callbacks_t *callbacks = mongoc_apm_callbacks_new();
    mongoc_apm_set_command_started_cb(callbacks, started);
    mongoc_apm_set_command_succeeded_cb(callbacks, succeeded);
    mongoc_apm_set_command_failed_cb(callbacks, failed);
    mongoc_apm_set_server_changed_cb(callbacks, server_changed);
    mongoc_apm_set_topology_changed_cb(callbacks, topology_changed);
    mongoc_apm_set_server_heartbeat_failed_cb(callbacks, heartbeat_failed);
    mongoc_client_pool_set_apm_callbacks(of, callbacks, watched);
    mongoc_apm_callbacks_destroy(callbacks);
}

int sent(const char *command) {
    pthread_mutex_lock(&view->lock);
    int found = *counter(view, command);
    pthread_mutex_unlock(&view->lock);
    return found;
}

void await_sent(const char *command, int before) {
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 10;
    int waited = 0;
    pthread_mutex_lock(&view->lock);
    while (*counter(view, command) <= before && waited == 0) {
        waited = pthread_cond_timedwait(&view->changed, &view->lock, &deadline);
    }
    pthread_mutex_unlock(&view->lock);
    holds(waited != ETIMEDOUT, "no %s was sent within 10 s", command);
}

int64_t last_cursor(void) {
    pthread_mutex_lock(&view->lock);
    int64_t found = view->last_cursor;
    pthread_mutex_unlock(&view->lock);
    return found;
}

void record(void) {
    pthread_mutex_lock(&view->lock);
    for (int i = 0; i < view->recorded; i++) bson_destroy(view->commands[i]);
    view->recorded = view->failures = 0;
    view->recording = true;
    pthread_mutex_unlock(&view->lock);
}

/* The i-th recorded command of this name; a command begins with its name. */
static const bson_t *nth(const char *command, int i) {
    for (int at = 0; at < view->recorded; at++) {
        bson_iter_t first;
        if (bson_iter_init(&first, view->commands[at]) && bson_iter_next(&first) &&
            strcmp(bson_iter_key(&first), command) == 0 && i-- == 0) {
            return view->commands[at];
        }
    }
    return NULL;
}

int recorded(const char *command) {
    pthread_mutex_lock(&view->lock);
    view->recording = false;
    int found = 0;
    while (nth(command, found)) found++;
    pthread_mutex_unlock(&view->lock);
    return found;
}

int recorded_failures(void) {
    pthread_mutex_lock(&view->lock);
    int found = view->failures;
    pthread_mutex_unlock(&view->lock);
    return found;
}

const bson_t *recorded_command(const char *command, int i) {
    pthread_mutex_lock(&view->lock);
    view->recording = false;
    const bson_t *found = nth(command, i);
    pthread_mutex_unlock(&view->lock);
    holds(found != NULL, "%s was sent only %d times", command, i);
    return found;
}

void verify_kept(struct view *watched) {
    pthread_mutex_lock(&watched->lock);
    int lost = watched->servers_lost;
    pthread_mutex_unlock(&watched->lock);
    same(lost, 0, "servers lost");
}

void verify_calm(struct view *watched) {
    verify_kept(watched);
    pthread_mutex_lock(&watched->lock);
    int heartbeats = watched->heartbeats_failed;
    pthread_mutex_unlock(&watched->lock);
    holds(heartbeats == 0, "%d heartbeats failed, the last with: %s", heartbeats, watched->last_problem);
}

void verify_view(void) {
    static const struct {
        const char *view, *topology, *server;
    } due[] = {
        /* This driver connects directly to a single address. */
        {"sharded", "Single", "Mongos"},
        {"replicaset", "Single", "RSPrimary"},
        {"loadbalanced", "LoadBalanced", "LoadBalancer"},
    };
    for (size_t i = 0; i < sizeof due / sizeof *due; i++) {
        if (strcmp(due[i].view, wanted) != 0) continue;
        same_text(view->topology, due[i].topology, "topology type");
        same(view->servers, 1, "servers");
        same_text(view->server, due[i].server, "server type");
        verify_calm(view);
        return;
    }
    wrong("there is no view %s", wanted);
}
