"""What the Python scenario's checks share: the registry, comparing, and watching what the driver says about itself."""

import threading
from contextlib import contextmanager

import pymongo
from bson import Int64
from pymongo import errors, monitoring

import blocking

# What the driver must make of the address: topology type and server type.
VIEWS = {
    "sharded": ("Sharded", "Mongos"),
    "replicaset": ("ReplicaSetWithPrimary", "RSPrimary"),
    "loadbalanced": ("LoadBalanced", "LoadBalancer"),
}
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Lacking(Exception):
    """The driver or the server has no such thing: the check is "n/a"."""


def same(found, wanted, what="value"):
    if found != wanted:
        raise AssertionError(f"{what} is {found!r:.200}, not {wanted!r:.200}")


def fails(code, operation):
    """Runs the operation, which must fail with this server code, and returns the error."""
    try:
        operation()
    except errors.OperationFailure as error:
        same(error.code, code, f"code of {error!r:.120}")
        return error
    raise AssertionError(f"no error, code {code} was due")


class View(
    monitoring.CommandListener,
    monitoring.ConnectionPoolListener,
    monitoring.ServerListener,
    monitoring.ServerHeartbeatListener,
):
    """What one client tells about itself."""

    def __init__(self):
        self.pools_cleared = 0
        self.servers_lost = []
        self.heartbeats = 0
        self.heartbeats_failed = []
        self.cursor_id = None
        self.get_more = threading.Event()
        self.recorded = {}

    @contextmanager
    def sent(self, name):
        """The commands of this name that are sent inside the block."""
        self.recorded[name] = []
        try:
            yield self.recorded[name]
        finally:
            del self.recorded[name]

    # Commands; those of heartbeats have other events but the same names.

    def started(self, event):
        if not isinstance(event, monitoring.CommandStartedEvent):
            return
        if event.command_name == "getMore":
            self.get_more.set()
        recorded = self.recorded.get(event.command_name)
        if recorded is not None:
            recorded.append(event.command)

    def succeeded(self, event):
        if isinstance(event, monitoring.ServerHeartbeatSucceededEvent):
            self.heartbeats += 1
        elif event.command_name == "aggregate":
            self.cursor_id = event.reply.get("cursor", {}).get("id")

    def failed(self, event):
        if isinstance(event, monitoring.ServerHeartbeatFailedEvent):
            self.heartbeats_failed.append(repr(event.reply))

    # Servers.

    def opened(self, event):
        pass

    def closed(self, event):
        pass

    def description_changed(self, event):
        if event.previous_description.server_type_name != "Unknown" and event.new_description.error:
            self.servers_lost.append(repr(event.new_description.error))

    # Connections.

    def pool_cleared(self, event):
        self.pools_cleared += 1

    def nothing(self, event):
        pass

    pool_created = pool_ready = pool_closed = nothing
    connection_created = connection_ready = connection_closed = nothing
    connection_check_out_started = connection_check_out_failed = nothing
    connection_checked_out = connection_checked_in = nothing


class Scenario:
    def __init__(self, arguments):
        self.uri = arguments.uri
        self.api = blocking.APIS[arguments.api]()
        self.view_name = arguments.view
        self.compressor = arguments.compressor
        self.view = View()
        self.options = {"serverSelectionTimeoutMS": 10_000}
        if self.compressor:
            self.options["compressors"] = self.compressor
        self.client = self.open(event_listeners=[self.view])
        self.db = self.client[f"drivers_{arguments.api}_{pymongo.version.replace('.', '_')}"]

    def open(self, **options):
        """Another client, to be closed."""
        return self.api.client()(self.uri, **{**self.options, **options})

    def collection(self, name, documents=(), **options):
        """An empty collection that exists, or one with these documents."""
        self.db.drop_collection(name)
        collection = self.db.create_collection(name, **options)
        if documents:
            collection.insert_many(documents)
        return collection

    def gone(self, collection, cursor_id):
        """The cursor must no longer exist on the server; one that does would answer 50738 to this session."""
        fails(43, lambda: self.db.command({"getMore": Int64(cursor_id), "collection": collection.name}))

    @contextmanager
    def failing(self, collection, mode, **data):
        """The server fails commands on the collection. A fail point has no other owner: one driver at a time."""
        fail_point = {"configureFailPoint": "failCommand", "mode": mode}
        self.client.admin.command({**fail_point, "data": {"namespace": collection.full_name, **data}})
        try:
            yield
        finally:
            self.client.admin.command({**fail_point, "mode": "off"})

    def wire_version(self):
        return self.client.admin.command("hello")["maxWireVersion"]
