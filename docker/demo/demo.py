"""A small shop that works through the proxy as any application would: several clients, many threads, real operations.

Each worker places orders of its own, reads them back and compares, pays some in a transaction, and sums them up with a cursor of
several batches. Whatever is not what it has to be ends the program with code 1.

    DEMO_URI       the proxy [mongodb://127.0.0.1:27016/]
    DEMO_CLIENTS   MongoClients, each with a pool of its own, as processes of a web server have them [4]
    DEMO_WORKERS   threads of each [50]
    DEMO_SECONDS   end after so long [0: on SIGTERM]
"""

import os
import signal
import sys
import threading
import time
from collections import Counter

from pymongo import MongoClient
from pymongo.errors import PyMongoError

URI = os.environ.get("DEMO_URI", "mongodb://127.0.0.1:27016/")
CLIENTS = int(os.environ.get("DEMO_CLIENTS", "4"))
WORKERS = int(os.environ.get("DEMO_WORKERS", "50"))
SECONDS = float(os.environ.get("DEMO_SECONDS", "0"))

# A worker keeps no more orders than that.
KEPT = 200
# A person looks at a page for longer.
PAUSE = 0.05


class Shop:
    """What all workers share: when to end, and what was done."""

    def __init__(self):
        self.end = threading.Event()
        self.lock = threading.Lock()
        self.done = Counter()
        self.wrong = None

    def count(self, what):
        with self.lock:
            self.done[what] += 1

    def fail(self, reason):
        with self.lock:
            self.wrong = self.wrong or reason
        self.end.set()


def work(shop, client, worker):
    orders = client.shop.orders
    accounts = client.shop.accounts
    # Of the last demo that had this worker.
    orders.delete_many({"worker": worker})
    accounts.replace_one({"_id": worker}, {"paid": 0}, upsert=True)
    placed = paid = 0
    while not shop.end.wait(PAUSE):
        order = {"worker": worker, "number": placed, "price": placed % 100}
        order["_id"] = orders.insert_one(order).inserted_id
        placed += 1
        shop.count("orders")
        if orders.find_one({"_id": order["_id"]}) != order:
            return shop.fail(f"{worker}: order {placed} is another one")
        shop.count("reads")
        if placed > KEPT:
            orders.delete_one({"worker": worker, "number": placed - KEPT - 1})
        if placed % 10 == 0:
            with client.start_session() as session:
                session.with_transaction(lambda s: pay(orders, accounts, worker, order["_id"], s))
            paid += 1
            shop.count("transactions")
        if placed % 50 == 0:
            numbers = [each["number"] for each in orders.find({"worker": worker}).sort("number").batch_size(20)]
            first = max(0, placed - KEPT)
            if numbers != list(range(first, placed)):
                return shop.fail(f"{worker}: of {placed} orders there are {len(numbers)}")
            if accounts.find_one(worker)["paid"] != paid:
                return shop.fail(f"{worker}: paid {paid} times, and it was not seen")
            shop.count("sums")
    return None


def pay(orders, accounts, worker, order, session):
    orders.update_one({"_id": order}, {"$set": {"paid": True}}, session=session)
    accounts.update_one({"_id": worker}, {"$inc": {"paid": 1}}, session=session)


def worker_of(shop, client, worker):
    try:
        work(shop, client, worker)
    except PyMongoError as error:
        shop.fail(f"{worker}: {type(error).__name__}: {error}")


def main():
    shop = Shop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: shop.end.set())
    clients = [MongoClient(URI, maxPoolSize=WORKERS) for _ in range(CLIENTS)]
    clients[0].shop.orders.create_index([("worker", 1), ("number", 1)])
    threads = [
        threading.Thread(target=worker_of, args=(shop, client, f"{c}-{w}"))
        for c, client in enumerate(clients)
        for w in range(WORKERS)
    ]
    for thread in threads:
        thread.start()
    print(f"{len(clients)} clients with {WORKERS} workers each, at {URI}")

    began = last = time.monotonic()
    before = Counter()
    while not shop.end.wait(min(5, SECONDS or 5)):
        now = time.monotonic()
        with shop.lock:
            done = Counter(shop.done)
        rates = ", ".join(f"{(done[what] - before[what]) / (now - last):.0f} {what}" for what in sorted(done))
        print(f"per second: {rates}")
        before, last = done, now
        if SECONDS and now - began >= SECONDS:
            shop.end.set()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    print(f"{sum(shop.done.values())} operations, {shop.wrong or 'all as they have to be'}")
    return 1 if shop.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
