"""pymongo's asynchronous client and motor, used like the synchronous one, so that one scenario does for all three.

Every call runs on one event loop, in a thread of its own, as it would in an asynchronous application; the caller waits.
"""

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

ASYNCHRONOUS = ("pymongo.asynchronous", "gridfs.asynchronous", "motor")
# Callbacks of transactions wait in these threads for what they do in turn on the loop.
CALLBACKS = 16


class Loop:
    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(CALLBACKS))
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, function, *args, **kwargs):
        """Calls the function on the loop and waits for its result, awaited if need be."""

        async def call():
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result()

    def wrap(self, value):
        if inspect.isroutine(value):
            return lambda *args, **kwargs: self.call(value, args, kwargs)
        return Blocking(self, value) if type(value).__module__.startswith(ASYNCHRONOUS) else value

    def call(self, function, args, kwargs):
        kwargs = {name: self.unwrap(value) for name, value in kwargs.items()}
        return self.wrap(self.run(function, *map(self.unwrap, args), **kwargs))

    def unwrap(self, value):
        if isinstance(value, Blocking):
            return value.target
        if inspect.isfunction(value):
            return self.callback(value)
        return value

    def callback(self, function):
        """For `with_transaction`, whose callback is a coroutine function there."""

        async def call(session):
            return await self.loop.run_in_executor(None, function, Blocking(self, session))

        return call


class Blocking:
    """An object of an asynchronous driver whose methods return results."""

    def __init__(self, loop, target):
        self.loop = loop
        self.target = target

    def __getattr__(self, name):
        return self.loop.wrap(getattr(self.target, name))

    def __getitem__(self, name):
        return self.loop.wrap(self.target[name])

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self.loop.run(self.target.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self):
        return self.loop.wrap(self.loop.run(self.target.__aenter__))

    def __exit__(self, *exception):
        return self.loop.run(self.target.__aexit__, *exception)


class Synchronous:
    name = "pymongo"

    def client(self):
        from pymongo import MongoClient

        return MongoClient

    def bucket(self):
        from gridfs import GridFSBucket

        return GridFSBucket


class Asynchronous:
    name = "async"

    def __init__(self):
        self.loop = Loop()

    def client(self):
        from pymongo import AsyncMongoClient

        return self.made(AsyncMongoClient)

    def bucket(self):
        from gridfs import AsyncGridFSBucket

        return self.made(AsyncGridFSBucket)

    def made(self, type):
        return lambda *args, **kwargs: self.loop.call(type, args, kwargs)


class Motor(Asynchronous):
    name = "motor"

    def client(self):
        from motor.motor_asyncio import AsyncIOMotorClient

        return self.made(AsyncIOMotorClient)

    def bucket(self):
        from motor.motor_asyncio import AsyncIOMotorGridFSBucket

        return self.made(AsyncIOMotorGridFSBucket)


APIS = {api.name: api for api in (Synchronous, Asynchronous, Motor)}
