"""A client that can do what no driver does: leave in the middle, read slowly, go on with another's cursor, send nonsense."""

import socket
import struct

import bson

from pymongo.errors import NetworkTimeout

OP_COMPRESSED = 2012
OP_MSG = 2013
MORE_TO_COME = 2
# Who has no answer after this long never gets one: what the proxy may wait for, several times over, on a machine that is busy.
ANSWERED_WITHIN = 90


class Gone(OSError):
    """The other end closed."""


class Wire:
    def __init__(self, address, cursors=None, timeout=ANSWERED_WITHIN):
        self.socket = socket.create_connection(address, timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.cursors = cursors
        self.serial = 0

    def hello(self, application, driver="soak"):
        client = {
            "application": {"name": application},
            "driver": {"name": driver, "version": "1"},
            "os": {"type": "Linux"},
        }
        return self.command({"hello": 1, "client": client}, "admin")

    def message(self, command, database="soak", flags=0):
        self.serial += 1
        body = struct.pack("<IB", flags, 0) + bson.encode({**command, "$db": database})
        return struct.pack("<iiii", 16 + len(body), self.serial, 0, OP_MSG) + body

    def send(self, command, database="soak", flags=0):
        self.socket.sendall(self.message(command, database, flags))

    def receive(self):
        length, _, response_to, _ = struct.unpack("<iiii", self.exactly(16))
        body = self.exactly(length - 16)
        assert response_to == self.serial, f"a reply to {response_to} instead of {self.serial}"
        return bson.decode(body[5:])

    def command(self, command, database="soak"):
        self.send(command, database)
        reply = self.receive()
        if self.cursors:
            self.cursors.note(command, reply)
        return reply

    def exactly(self, count):
        parts = []
        while count:
            try:
                part = self.socket.recv(min(count, 1 << 20))
            except TimeoutError as error:
                raise NetworkTimeout(f"no answer within {self.socket.gettimeout()} s") from error
            if not part:
                raise Gone("closed")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def close(self):
        self.socket.close()

    def reset(self):
        """Leaves as a process does that dies with bytes unread."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
