"""A relay between one proxy and a mongod that misbehaves as told: at the door, or in the middle of a chosen command.

Monitoring always passes: trouble that monitoring sees as well is made on the server. Used by `trouble.py` from its own
thread; the relays of all proxies live on one event loop.
"""

import asyncio
import enum
import socket
import struct
import threading

import bson

# Enough of a request for its header and the name of its command.
HEAD = 128
OP_MSG = 2013
MORE_TO_COME = 2
# Longest that any single step from outside takes, seconds.
PATIENCE = 10


class Fault(enum.Enum):
    """What becomes of one command."""

    # Its first bytes are read, then the connection is reset: the server never hears of it.
    CUT_REQUEST = enum.auto()
    # Executed; the connection closes without a reply.
    NO_REPLY = enum.auto()
    # Executed; the connection closes in the middle of the reply.
    HALF_REPLY = enum.auto()
    # Executed; neither a reply nor an end of the connection.
    SILENCE = enum.auto()
    # Reaches the server when the faults are forgotten.
    HOLD = enum.auto()


class Loop:
    """The event loop in a thread of its own."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)


class Relay:
    """Listens on `port` of the loopback, in front of the mongod at `server`."""

    def __init__(self, loop, port, server):
        self._loop, self._server = loop, server
        self._door_open = True
        # [command, fault, how often still or None for always]
        self._faults = []
        self._released = asyncio.Event()
        self._met = 0
        # How many commands are held.
        self.holds = 0
        self._data = set()
        loop.run(asyncio.start_server(self._connection, "127.0.0.1", port))

    def fault(self, command, fault, times=None):
        """Treats the next `times` commands of this name like this, or all of them."""
        self._loop.run(self._set_fault(command, fault, times))

    def forget(self):
        """Forgets all faults and lets go what is held."""
        self._loop.run(self._set_fault(None, None, 0))

    def met(self):
        """How often a fault or the closed door was met; starts over."""
        met, self._met = self._met, 0
        return met

    def shut(self):
        """Closes the data connections, and each new one once it has said hello."""
        self._loop.run(self._set_door(False))

    def open(self):
        self._loop.run(self._set_door(True))

    async def _set_fault(self, command, fault, times):
        self._released.set()
        self._released = asyncio.Event()
        self._faults = [[command, fault, times]] if fault else []

    async def _set_door(self, is_open):
        self._door_open = is_open
        if not is_open:
            for writer in list(self._data):
                writer.transport.abort()

    async def _connection(self, reader, writer):
        try:
            hello = await message(reader)
            upstream = await asyncio.open_connection("127.0.0.1", self._server)
        except (OSError, asyncio.IncompleteReadError):
            return writer.close()
        try:
            if is_monitor(hello):
                upstream[1].write(hello)
                await asyncio.gather(pipe(reader, upstream[1]), pipe(upstream[0], writer))
            elif self._door_open:
                self._data.add(writer)
                await self._relay(hello, reader, writer, *upstream)
            else:
                self._met += 1
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._data.discard(writer)
            writer.close()
            upstream[1].close()

    async def _relay(self, head, reader, writer, upstream_reader, upstream_writer):
        """Request and reply, one after the other, until a connection ends."""
        while True:
            fault = self._fault_for(command_name(head))
            if fault == Fault.CUT_REQUEST:
                reset = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                return
            request = head + await reader.readexactly(length_of(head) - len(head))
            if fault == Fault.HOLD:
                self.holds += 1
                await self._released.wait()
                self.holds -= 1
            upstream_writer.write(request)
            await upstream_writer.drain()
            if not is_unacknowledged(request):
                reply = await message(upstream_reader)
                if fault == Fault.HALF_REPLY:
                    writer.write(reply[: len(reply) // 2])
                    await writer.drain()
                elif fault == Fault.SILENCE:
                    await reader.read(1)
                elif fault in (None, Fault.HOLD):
                    writer.write(reply)
                    await writer.drain()
            if fault not in (None, Fault.HOLD):
                return
            head = await reader.readexactly(16)
            head += await reader.readexactly(min(length_of(head), HEAD) - 16)

    def _fault_for(self, command):
        for entry in self._faults:
            if entry[0] == command and entry[2] != 0:
                if entry[2]:
                    entry[2] -= 1
                self._met += 1
                return entry[1]
        return None


async def message(reader):
    header = await reader.readexactly(16)
    return header + await reader.readexactly(length_of(header) - 16)


async def pipe(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


def length_of(head):
    return struct.unpack_from("<i", head)[0]


def is_unacknowledged(request):
    return struct.unpack_from("<i", request, 16)[0] & MORE_TO_COME != 0


def command_name(head):
    """The first name of the document that all drivers send first; empty for other kinds of messages."""
    opcode, _flags, kind = struct.unpack_from("<iiB", head, 12)
    if opcode != OP_MSG or kind != 0:
        return ""
    name = head[26:]
    return name[: name.index(0)].decode()


def is_monitor(hello):
    """The proxy's monitors say hello as the driver that they are made of."""
    driver = bson.decode(hello[21:]).get("client", {}).get("driver", {})
    return driver.get("name", "").startswith("mongo-rust-driver")
